"""GPT-2 in Flax: stacked layers, scanned, with a prefix of keys and values.

    GPT2
      token_embedding     [V D]     also the output head unless `head` is there
      position_embedding  [M D]     M = n_positions
      blocks              list of stacks; every leaf of a stack has a leading axis of
                          its layers. One stack, or two where `split` parts the layers
      ln_f                scale, bias [D]
      head                [V D] or None (tied)

Written after transformers' modeling_gpt2 (behaviour) and tested against it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prefix_jax.errors import InputError
from prefix_jax.model.activations import PARAMETERS, activation
from prefix_jax.model.attention import (
    KeyBlock,
    attend,
    causal_mask,
    mass,
    precision,
    prefix_mask,
)
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.kv import KV


class Norm(nnx.Module):
    """Layer norm with f32 statistics, result in the input's type."""

    def __init__(self, shape: tuple[int, ...]):
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: Float[Array, "B T D"], epsilon: float):
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        centred = wide - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + epsilon)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


class Dense(nnx.Module):
    """A matrix and a bias, cast to the input's type where they are used."""

    def __init__(self, shape: tuple[int, ...], inputs: int, deviation: float, key):
        """`shape`: [layers, *inputs, *outputs] with `inputs` input axes."""
        self.kernel = nnx.Param(deviation * jax.random.normal(key, shape))
        self.bias = nnx.Param(jnp.zeros((shape[0], *shape[1 + inputs :])))

    def __call__(self, equation: str, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel[...].astype(x.dtype)
        product = jnp.einsum(equation, x, kernel, precision=precision(x.dtype))
        return product + self.bias[...].astype(x.dtype)


class Block(nnx.Module):
    """A stack of transformer layers; `lax.scan` hands `__call__` one of them."""

    def __init__(self, config: GPT2Config, layers: int, key: PRNGKeyArray):
        self.config = config
        d, h, k, f = config.n_embd, config.n_head, config.head_width, config.mlp_width
        keys = jax.random.split(key, 4)
        # The two projections into the residual stream start smaller (GPT-2 paper).
        deviation = config.initializer_range
        small = deviation / (2 * config.n_layer) ** 0.5
        self.ln_1 = Norm((layers, d))
        self.qkv = Dense((layers, d, 3, h, k), 1, deviation, keys[0])
        self.out = Dense((layers, h, k, d), 2, small, keys[1])
        self.ln_2 = Norm((layers, d))
        self.up = Dense((layers, d, f), 1, deviation, keys[2])
        self.down = Dense((layers, f, d), 1, small, keys[3])
        parameters = PARAMETERS.get(config.activation_function, {})
        self.act = nnx.Dict(
            {
                name: nnx.Param(jnp.array([start] * layers))
                for name, start in parameters.items()
            }
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seen: list[KeyBlock],
        own_mask: Bool[Array, "#B T T"],
        index: Int[Array, ""],
        observe: bool,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array], Array | None]:
        """One layer: its output, these tokens' (keys, values), each [B T H K], and, if
        asked for, the share of attention that the first block receives, [B H T]."""
        config = self.config
        scale = config.head_width**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale = scale / (index + 1)
        with jax.named_scope("attention"):
            normal = self.ln_1(x, config.layer_norm_epsilon)
            query, key, value = jnp.moveaxis(self.qkv("btd,dchk->btchk", normal), 2, 0)
            blocks = [*seen, KeyBlock.of(key, value, own_mask)]
            observed = mass(query, blocks, scale) if observe else None
            x += self.out("bthk,hkd->btd", attend(query, blocks, scale))
        with jax.named_scope("mlp"):
            normal = self.ln_2(x, config.layer_norm_epsilon)
            inner = activation(config.activation_function)(
                self.up("btd,df->btf", normal),
                **{name: value.astype(x.dtype) for name, value in self.act.items()},
            )
            x += self.down("btf,fd->btd", inner)
        return x, (key, value), observed


class Slots(NamedTuple):
    """Room for the keys and values of a stack's layers, heads first (`KeyBlock`)."""

    keys: Float[Array, "layers N H S K"]
    values: Float[Array, "layers N H S K"]


class Cache(NamedTuple):
    """Keys and values of tokens that were read before."""

    stacks: Sequence[Slots]
    """Those of each of the backbone's stacks."""
    mask: Bool[Array, "#B #T S"]
    """Which slots each row, or each of its tokens, sees."""


class Forward(NamedTuple):
    """What a pass through the layers gives."""

    hidden: Float[Array, "B T D"]
    """After the last layer norm, in the backbone's dtype."""
    stacks: list[KV]
    """Keys and values of the tokens themselves for each stack; none if not asked."""
    prefix_mass: Float[Array, "L B H T"] | None
    """The share of attention that each token pays to the prefix, if asked for."""

    @property
    def kv(self) -> KV:
        """Keys and values of the tokens themselves in all layers."""
        assert self.stacks, "forward was not asked to collect them"
        return jax.tree.map(lambda *x: jnp.concatenate(x), *self.stacks)


class GPT2(nnx.Module):
    """GPT-2, a Flax module that is a plain pytree."""

    def __init__(
        self,
        config: GPT2Config,
        *,
        key: PRNGKeyArray,
        dtype: jnp.dtype | str = "float32",
        remat: bool = False,
    ):
        """Random weights as GPT-2 starts training with, f32; `dtype` computes."""
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        keys = jax.random.split(key, 4)
        deviation = config.initializer_range
        v, m, d = config.vocab_size, config.n_positions, config.n_embd
        self.token_embedding = nnx.Param(deviation * jax.random.normal(keys[0], (v, d)))
        self.position_embedding = nnx.Param(
            deviation * jax.random.normal(keys[1], (m, d))
        )
        self.blocks = nnx.List([Block(config, config.n_layer, keys[2])])
        self.ln_f = Norm((d,))
        self.head = nnx.data(
            None
            if config.tie_word_embeddings
            else nnx.Param(deviation * jax.random.normal(keys[3], (v, d)))
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        prefix: KV | None = None,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        prefix_ids: Int[Array, " rows"] | None = None,
        after: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """f32 logits of the next token; arguments as in `forward`.

        `prefix_ids` names for each row its prefix in the bank `prefix`; without them
        there is one prefix for all rows, or one for each. Raises InputError too where
        their numbers differ.
        """
        rows = len(tokens)
        if prefix_ids is not None:
            if prefix is None or len(prefix_ids) != rows:
                raise InputError(
                    f"{len(prefix_ids)} prefix_ids for {rows} rows and "
                    f"{0 if prefix is None else prefix.number} prefixes; give a bank "
                    "of prefixes, and an id for each row"
                )
            prefix = prefix.select(prefix_ids)
        elif prefix is not None and prefix.number not in (1, rows):
            raise InputError(
                f"{prefix.number} prefixes for {rows} rows: choose one for each row "
                "(prefix_ids)"
            )
        read = self.forward(
            tokens, prefix=prefix, mask=mask, positions=positions, after=after
        )
        return self.logits(read.hidden)

    def forward(
        self,
        tokens: Int[Array, "B T"] | Float[Array, "B T D"],
        *,
        prefix: KV | None = None,
        caches: Sequence[Cache] = (),
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        collect: bool = False,
        observe: bool = False,
        after: Bool[Array, "B T"] | None = None,
    ) -> Forward:
        """The layers over `tokens`, which see the prefix, the caches and each other.

        Tokens are ids or embeddings [B T D], which stand for what ids would look up.
        `mask` marks the real tokens (None: all); the prefix is always seen, and where
        it holds N < B of them, B/N neighbouring rows share each. `positions`
        are indices into the position table; None counts on from the prefix, and is only
        for text without a cache before it. Given ones are not checked: a compiled
        program cannot, and out of range they read the table's last row.
        `collect` returns the tokens' own keys and values, for a cache; `observe` the
        attention that they pay to a prefix that shares their softmax. `after` marks
        the tokens that come after an infix, which alone see it; for an infix only.
        Raises InputError where the positions cannot fit the table.
        """
        rows, length = tokens.shape[:2]
        if prefix is not None:
            prefix.check_fit(self.config, rows, after)
        if positions is None:
            if caches:
                raise ValueError("after a cache, positions must be given")
            positions = self._positions(prefix, rows, length, after)
        own_mask = causal_mask(length, mask)
        prefix_layers = None
        if prefix is not None:
            prefix = prefix.cast(self.dtype, rows)
            prefix_layers = prefix.keys, prefix.values, prefix.mask

        with jax.named_scope("embed"):
            x = self.token_embedding[...][tokens] if tokens.ndim == 2 else tokens
            x = x.astype(self.dtype)
            x += self.position_embedding[...][positions].astype(self.dtype)

        def layer(x, inputs):
            block, index, prefix_layer, cache_layers = inputs
            seen = []
            if prefix is not None:
                keys, values, real = prefix_layer
                visible = prefix_mask(real, after, prefix.length)
                seen.append(KeyBlock.of(keys, values, visible, prefix.own_softmax))
            for cache, slots in zip(caches, cache_layers, strict=True):
                seen.append(KeyBlock(slots.keys, slots.values, cache.mask))
            observing = observe and prefix is not None and not prefix.own_softmax
            x, own_kv, share = block(x, seen, own_mask, index, observing)
            return x, (own_kv if collect else None, share)

        start, stacks, shares = 0, [], []
        for number, (stack, size) in enumerate(
            zip(self.blocks, self.stack_sizes, strict=True)
        ):
            stop = start + size
            x, gathered = jax.lax.scan(
                jax.checkpoint(layer) if self.remat else layer,
                x,
                (
                    stack,
                    jnp.arange(start, stop),
                    jax.tree.map(lambda x, a=start, b=stop: x[a:b], prefix_layers),
                    [cache.stacks[number] for cache in caches],
                ),
            )
            own_kv, share = gathered
            stacks += [] if own_kv is None else [KV(*own_kv)]
            shares += [] if share is None else [share]
            start = stop
        hidden = self.ln_f(x, self.config.layer_norm_epsilon)
        return Forward(
            hidden,
            stacks,
            jnp.concatenate(shares) if shares else None,
        )

    @property
    def stack_sizes(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return tuple(stack.ln_1.scale.shape[0] for stack in self.blocks)

    def parted(self, *sizes: int) -> "GPT2":
        """The same layers in stacks of these sizes, each scanned for itself."""
        if sizes == self.stack_sizes:
            return self
        assert sum(sizes) == self.config.n_layer, sizes
        whole = jax.tree.map(lambda *x: jnp.concatenate(x), *self.blocks)
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        parted = jax.tree.map(lambda x: x, self)  # a copy that shares the leaves
        parted.blocks = nnx.List(
            [
                jax.tree.map(lambda x, i=start, n=size: x[i : i + n], whole)
                for start, size in zip(starts, sizes, strict=True)
            ]
        )
        return parted

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """f32 logits of hidden states."""
        head = self.token_embedding if self.head is None else self.head
        with jax.named_scope("head"):
            return jnp.einsum(
                "...d,vd->...v",
                hidden,
                head[...].astype(hidden.dtype),
                precision=precision(hidden.dtype),
                preferred_element_type=jnp.float32,
            )

    def _positions(self, prefix, rows, length, after):
        offset = 0 if prefix is None else prefix.position_offset
        limit = self.config.n_positions
        if offset + length > limit:
            raise InputError(
                f"prefix {offset} + {length} tokens = {offset + length} positions; the "
                f"backbone has {limit}; shorten the text to {max(limit - offset, 0)} "
                "tokens"
            )
        shift = 0 if prefix is None else prefix.shift(rows, after)
        return jnp.arange(length)[None] + shift
