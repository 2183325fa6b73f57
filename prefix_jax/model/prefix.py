"""The learned prefix: flat keys and values, or the paper's reparametrisation.

Either kind is a pytree module; calling it gives the `KV` that attention sees, and
that call is also the folding: what is stored after training is the `KV` alone.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import Precision
from jaxtyping import Array, Float, Int, PRNGKeyArray
from transformers import PreTrainedTokenizerBase

from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.kv import KV
from prefix_jax.prefix_config import PositionMode, PrefixConfig


@runtime_checkable
class Prefix(Protocol):
    """What every kind of prefix is: a pytree that gives a `KV` with N = 1."""

    def __call__(self, *, dropout_key: PRNGKeyArray | None = None) -> KV: ...


class FlatPrefix(nnx.Module):
    """The keys and values themselves, in units of the backbone's own activations.

        keys, values              [L P H K]   trained
        key_scale, value_scale    [L 1 H 1]   fixed: `activation_scale`

    Keys and values of one model differ in size by an order of magnitude between layers
    and heads; in these units one learning rate means the same everywhere.
    """

    def __init__(
        self, kv: KV, scale: KV, *, dropout: float, position_mode: PositionMode
    ):
        """Starts as `kv` [L 1 P H K]; `scale` [L 1 1 H 1]."""
        self.dropout = dropout
        self.position_mode: PositionMode = position_mode
        self.key_scale = nnx.Variable(scale.keys[:, 0])
        self.value_scale = nnx.Variable(scale.values[:, 0])
        self.keys = nnx.Param(kv.keys[:, 0] / scale.keys[:, 0])
        self.values = nnx.Param(kv.values[:, 0] / scale.values[:, 0])

    def __call__(self, *, dropout_key: PRNGKeyArray | None = None) -> KV:
        """The prefix as KV [L 1 P H K] in f32, with dropout if a key is given."""
        kv = KV(
            (self.keys[...] * self.key_scale[...])[:, None],
            (self.values[...] * self.value_scale[...])[:, None],
            self.position_mode,
        )
        return _dropout(kv, self.dropout, dropout_key)


class MLPPrefix(nnx.Module):
    """Li & Liang 2021, section 4.3: embedding -> linear -> tanh -> linear.

    embedding     [P D]
    inner_kernel  [D M]          M = PrefixConfig.hidden
    inner_bias    [M]
    outer_kernel  [M L 2 H K]    2: key, value
    outer_bias    [L 2 H K]
    """

    def __init__(
        self,
        shape: GPT2Config,
        length: int,
        hidden: int,
        *,
        key: PRNGKeyArray,
        dropout: float,
        position_mode: PositionMode,
    ):
        """PyTorch's initial distributions, as the paper's code: N(0,1) and uniform."""
        self.dropout = dropout
        self.position_mode: PositionMode = position_mode
        keys = jax.random.split(key, 5)
        out = (shape.n_layer, 2, shape.n_head, shape.head_width)

        def uniform(key, dims, inputs):
            return jax.random.uniform(
                key, dims, minval=-(inputs**-0.5), maxval=inputs**-0.5
            )

        d = shape.n_embd
        self.embedding = nnx.Param(jax.random.normal(keys[0], (length, d)))
        self.inner_kernel = nnx.Param(uniform(keys[1], (d, hidden), d))
        self.inner_bias = nnx.Param(uniform(keys[2], (hidden,), d))
        self.outer_kernel = nnx.Param(uniform(keys[3], (hidden, *out), hidden))
        self.outer_bias = nnx.Param(uniform(keys[4], out, hidden))

    def inner(self) -> Float[Array, "P M"]:
        """What the last layer reads."""
        product = jnp.dot(
            self.embedding[...], self.inner_kernel[...], precision=Precision.HIGHEST
        )
        return jnp.tanh(product + self.inner_bias)

    def __call__(self, *, dropout_key: PRNGKeyArray | None = None) -> KV:
        """The prefix as KV [L 1 P H K] in f32, with dropout if a key is given."""
        both = jnp.einsum(
            "pm,mlchk->clphk",
            self.inner(),
            self.outer_kernel[...],
            precision=Precision.HIGHEST,
        )
        both += jnp.moveaxis(self.outer_bias[...], 1, 0)[:, :, None]
        kv = KV(both[0][:, None], both[1][:, None], self.position_mode)
        return _dropout(kv, self.dropout, dropout_key)

    def start_from(self, kv: KV) -> None:
        """Set the last layer so that the prefix equals `kv` [L 1 P H K].

        Least squares in f64 on the inner activations; exact (to f32 rounding) because
        P <= M rows of tanh features are independent. Part of construction.
        """
        target = np.stack([kv.keys[:, 0], kv.values[:, 0]]).astype(np.float64)
        target = np.einsum("clphk->plchk", target)
        inner = np.asarray(self.inner(), np.float64)
        if inner.shape[0] > inner.shape[1]:
            raise InputError(
                f"{inner.shape[0]} prefix positions cannot start from given words "
                f"through an MLP of width {inner.shape[1]}; raise prefix.hidden to "
                f"{inner.shape[0]} or lower prefix.length"
            )
        bias = target.mean(0)
        kernel, *_ = np.linalg.lstsq(
            inner, (target - bias).reshape(len(target), -1), rcond=None
        )
        self.outer_kernel[...] = jnp.asarray(
            kernel.reshape(inner.shape[1], *target.shape[1:]), jnp.float32
        )
        self.outer_bias[...] = jnp.asarray(bias, jnp.float32)


def init_prefix(
    backbone: GPT2,
    config: PrefixConfig = PrefixConfig(),
    *,
    key: PRNGKeyArray,
    tokenizer: PreTrainedTokenizerBase | None = None,
    examples: Sequence[Sequence[int] | Int[np.ndarray, "_"]] = (),
) -> FlatPrefix | MLPPrefix:
    """A prefix for `backbone`, started as `config.init` says.

    `words` needs the tokenizer; `examples` needs token ids of a few training examples;
    None is `examples` where some are given, else `random`. Activations are read at
    positions 0 .. P-1, where the tokens would stand in a prompt, and the tokens repeat
    if they are fewer than `config.length`. Where examples are more than that, the
    longest lose their beginnings, until all together fit.
    Raises InputError if what the initialisation needs was not given, or where the
    prefix leaves no room for text.
    """
    start_key, scale_key, noise_key = jax.random.split(key, 3)
    init = config.init or ("examples" if len(examples) else "random")
    tokens = _start_tokens(config, init, tokenizer, examples)
    length = config.length if tokens is None else len(tokens)
    assert length is not None  # PrefixConfig checks it
    shape = backbone.config
    if config.position_mode == "shifted":
        shape.check_room(length, "a prefix")
    scale = activation_scale(backbone, scale_key)
    dims = (shape.n_layer, 1, length, shape.n_head, shape.head_width)
    if tokens is not None:
        start = activations(backbone, jnp.asarray(tokens, jnp.int32))
    elif init == "zeros":
        start = KV(jnp.zeros(dims), jnp.zeros(dims))
    else:
        noise = jax.random.normal(noise_key, (2, *dims))
        start = KV(noise[0] * scale.keys, noise[1] * scale.values)
    if config.kind == "flat":
        return FlatPrefix(
            start, scale, dropout=config.dropout, position_mode=config.position_mode
        )
    prefix = MLPPrefix(
        shape,
        length,
        config.hidden,
        key=start_key,
        dropout=config.dropout,
        position_mode=config.position_mode,
    )
    if init != "random":
        prefix.start_from(start)
    return prefix


def activation_scale(backbone: GPT2, key: PRNGKeyArray) -> KV:
    """Size of the backbone's keys and values by layer and head, [L 1 1 H 1] in f32.

    The power of two nearest to their root mean square: multiplying by it never rounds,
    and it is the same on every device. Measured on random tokens, so that no tokenizer
    is needed: sizes hardly depend on the text.
    """
    length = min(64, backbone.config.n_positions)
    tokens = jax.random.randint(key, (length,), 0, backbone.config.vocab_size)
    kv = activations(backbone, tokens)

    @jax.jit
    def size(x):
        mean = jnp.square(x).mean((2, 4), keepdims=True)
        return jnp.exp2(jnp.round(jnp.log2(jnp.sqrt(mean) + 1e-6)))

    return KV(size(kv.keys), size(kv.values))


def activations(backbone: GPT2, text: Int[Array, " T"] | Float[Array, "T D"]) -> KV:
    """Keys and values [L 1 T H K], f32, that the backbone gives a text of T tokens.

    Instead of token ids, the text may be embeddings, as prompt tuning learns them.
    """
    kv = _collected(backbone, text[None])
    return jax.tree.map(lambda x: x.astype(jnp.float32), kv)


@jax.jit
def _collected(backbone, tokens):
    return backbone.forward(tokens, collect=True).kv


def _start_tokens(config, init, tokenizer, examples) -> list[int] | None:
    """Token ids whose activations the prefix starts from, or None."""
    if init == "words":
        if tokenizer is None:
            raise InputError(
                'prefix.init is "words": pass init_prefix(..., tokenizer=...)'
            )
        tokens = tokenizer.encode(config.words, add_special_tokens=False)
    elif init == "examples":
        tokens = _ends(examples, config.length)
        if not tokens:
            raise InputError(
                'prefix.init is "examples": pass init_prefix(..., examples=[ids, ...]) '
                'or choose prefix.init "random", "words" or "zeros"'
            )
    else:
        return None
    if config.length is None:
        return tokens
    repeats = -(-config.length // len(tokens))
    return (tokens * repeats)[: config.length]


def _ends(examples, length: int | None) -> list[int]:
    """The tokens of all examples; the longest lose their beginnings down to `length`.

    Shares of several examples start lower, and stay lower, than one example's
    beginning: validation loss 0.75 against 0.80 nats after 150 steps of the quick
    start.
    """
    kept = [len(example) for example in examples]
    while length is not None and sum(kept) > length:
        kept[kept.index(max(kept))] -= 1
    return [
        int(token)
        for example, number in zip(examples, kept, strict=True)
        for token in example[len(example) - number :]
    ]


def _dropout(kv: KV, rate: float, key: PRNGKeyArray | None) -> KV:
    if key is None or rate == 0.0:
        return kv
    leaves, treedef = jax.tree.flatten(kv)
    keys = jax.random.split(key, len(leaves))
    kept = [
        jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
        for key, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, kept)
