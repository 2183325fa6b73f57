"""A prefix for a backbone, made as its configuration says."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from transformers import PreTrainedTokenizerBase

from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_form import Form, layer_lengths
from prefix_jax.model.prefix_kinds import EmbeddingPrefix, FlatPrefix, MLPPrefix
from prefix_jax.model.prefix_start import (
    activation_scale,
    activations,
    embedding_scale,
    refit,
    start_tokens,
)
from prefix_jax.prefix_config import PrefixConfig


def init_prefix(
    backbone: Backbone,
    config: PrefixConfig = PrefixConfig(),
    *,
    key: PRNGKeyArray,
    tokenizer: PreTrainedTokenizerBase | None = None,
    examples: Sequence[Sequence[int] | Int[np.ndarray, "_"]] = (),
    start: KV | Float[Array, "P D"] | None = None,
) -> FlatPrefix | MLPPrefix | EmbeddingPrefix:
    """A prefix for `backbone`, started as `config.init` says.

    `words` and `labels` need the tokenizer; `examples` needs token ids of a few
    training examples; `prefix` needs `start`, a prefix [L 1 P H K] (`load_prefix`) or,
    for kind `embedding`, vectors [P D]. None is `examples` where some are given, else
    `random`. Activations are read at positions 0 .. P-1, where the tokens would stand
    in a prompt, and the tokens repeat if they are fewer than `config.length`. Where
    examples or labels are more than that, the longest lose their beginnings, until all
    together fit.
    Raises InputError if what the initialisation needs was not given, where the start
    is another sort of prefix, or where the prefix leaves no room for text.
    """
    start_key, scale_key, noise_key = jax.random.split(key, 3)
    init = config.init or ("examples" if len(examples) else "random")
    shape = backbone.config
    tokens = start_tokens(config, init, tokenizer, examples, shape.vocab_size)
    length = config.longest if tokens is None else len(tokens)
    given = _checked_start(start, config, backbone) if init == "prefix" else None
    if given is not None and length is None:
        length = given.length if isinstance(given, KV) else len(given)
    assert length is not None  # PrefixConfig checks it
    form = Form(
        position_mode=config.position_mode,
        placement=config.placement,
        dropout=config.dropout,
        nested=_nested(config, length),
        lengths=layer_lengths(config.layers, config.lengths, length, shape.n_layer),
    )
    if config.position_mode == "shifted":
        shape.check_room(length, "a prefix")
    if config.kind == "embedding":
        scale = embedding_scale(backbone)
        if tokens is not None:
            vectors = backbone.token_embedding[...][jnp.asarray(tokens, jnp.int32)]
        elif isinstance(given, jax.Array):
            vectors = given[jnp.arange(length) % len(given)]
        else:
            noise = jax.random.normal(noise_key, (length, shape.n_embd))
            vectors = scale * (0.0 if init == "zeros" else noise)
        return EmbeddingPrefix(vectors.astype(jnp.float32), scale, form)
    scale = activation_scale(backbone, scale_key)
    if tokens is not None:
        kv = activations(backbone, jnp.asarray(tokens, jnp.int32))
    elif isinstance(given, KV):
        kv = refit(given, form.lengths or [length] * shape.n_layer)
    else:
        dims = (shape.n_layer, 1, length, shape.kv_heads, shape.head_width)
        noise = jax.random.normal(noise_key, (2, *dims))
        keys, values = jnp.zeros((2, *dims)) if init == "zeros" else noise
        kv = KV(keys * scale.keys, values * scale.values)
    gate = None
    if config.gate:
        # The values of a gated prefix come with its gates folded in.
        layers = len(np.arange(shape.n_layer)[form.layers])
        gate = jnp.full((layers, shape.kv_heads), float(init == "prefix"))
    if config.kind == "flat":
        return FlatPrefix(kv, scale, form, gate=gate)
    prefix = MLPPrefix(shape, length, config.hidden, form, key=start_key, gate=gate)
    if init != "random":
        prefix.start_from(kv)
    return prefix


def _nested(config: PrefixConfig, length: int) -> tuple[int, ...]:
    """The lengths that a step draws from, the whole one among them."""
    if not config.nested:
        return ()
    if config.nested[-1] > length:
        raise InputError(
            f"prefix.nested has {config.nested[-1]} positions but the prefix has "
            f"{length}; leave it out"
        )
    return tuple(sorted({*config.nested, length}))


def _checked_start(
    start: KV | Float[Array, "P D"] | None, config: PrefixConfig, backbone: Backbone
) -> KV | Float[Array, "P D"]:
    """What `init="prefix"` starts from, if it could be the prefix of `config`."""
    if start is None:
        raise InputError(
            'prefix.init is "prefix": pass init_prefix(..., start=load_prefix(DIR, '
            'backbone)), or start=load_embeddings(DIR, backbone) for kind "embedding"'
        )
    if config.kind == "embedding":
        if isinstance(start, KV):
            raise InputError(
                'a prefix of kind "embedding" starts from vectors [P D]; keys and '
                "values cannot be turned back into them: start from a stored prefix "
                'of kind "embedding"'
            )
        return jnp.asarray(start)
    if not isinstance(start, KV):
        raise InputError(
            f'a prefix of kind "{config.kind}" starts from keys and values; pass '
            "start=load_prefix(DIR, backbone)"
        )
    start.check_shape(backbone.config)
    if start.number != 1:
        raise InputError(
            f"a bank of {start.number} prefixes was given to start from; give one"
        )
    for what, there, here in (
        ("position_mode", start.position_mode, config.position_mode),
        ("placement", start.placement, config.placement),
        ("gate", start.own_softmax, config.gate),
    ):
        if there != here:
            raise InputError(
                f"the prefix to start from has {what} {there!r} and prefix.{what} is "
                f"{here!r}: its keys and values would not mean the same; set "
                f"prefix.{what} to {there!r}"
            )
    return start
