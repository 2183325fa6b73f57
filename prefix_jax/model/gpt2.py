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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prefix_jax.errors import InputError
from prefix_jax.model.activations import PARAMETERS, activation
from prefix_jax.model.attention import KeyBlock, attend, causal_mask
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
        return jnp.einsum(equation, x, kernel) + self.bias[...].astype(x.dtype)


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
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        """One layer: (output, (keys, values) of these tokens, each [B T H K])."""
        config = self.config
        scale = config.head_width**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale = scale / (index + 1)
        with jax.named_scope("attention"):
            normal = self.ln_1(x, config.layer_norm_epsilon)
            query, key, value = jnp.moveaxis(self.qkv("btd,dchk->btchk", normal), 2, 0)
            blocks = [*seen, KeyBlock(key, value, own_mask)]
            x += self.out("bthk,hkd->btd", attend(query, blocks, scale))
        with jax.named_scope("mlp"):
            normal = self.ln_2(x, config.layer_norm_epsilon)
            inner = activation(config.activation_function)(
                self.up("btd,df->btf", normal),
                **{name: value.astype(x.dtype) for name, value in self.act.items()},
            )
            x += self.down("btf,fd->btd", inner)
        return x, (key, value)


class Forward(NamedTuple):
    """What a pass through the layers gives."""

    hidden: Float[Array, "B T D"]
    """After the last layer norm, in the backbone's dtype."""
    kv: KV | None
    """Keys and values of the tokens themselves, if asked for."""


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
    ) -> Float[Array, "B T V"]:
        """f32 logits of the next token; arguments as in `forward`."""
        return self.logits(
            self.forward(tokens, prefix=prefix, mask=mask, positions=positions).hidden
        )

    def forward(
        self,
        tokens: Int[Array, "B T"],
        *,
        prefix: KV | None = None,
        cache: KV | None = None,
        mask: Bool[Array, "B S"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        collect: bool = False,
    ) -> Forward:
        """The layers over `tokens`, which see the prefix, the cache and each other.

        `mask` marks the real tokens among the cache's slots and then `tokens` (S =
        slots + T; None: all real); the prefix is always seen. `positions` are indices
        into the position table; None counts on from the prefix (its `position_mode`).
        `collect` returns the tokens' own keys and values, for a cache.
        Raises InputError where the positions cannot fit the table.
        """
        rows, length = tokens.shape
        slots = 0 if cache is None else cache.length
        if positions is None:
            positions = self._positions(prefix, slots, length)
        own = None if mask is None else mask[:, slots:]
        own_mask = causal_mask(length, own)
        cache_mask = None if mask is None else mask[:, None, :slots]

        with jax.named_scope("embed"):
            x = self.token_embedding[...][tokens].astype(self.dtype)
            x += self.position_embedding[...][positions].astype(self.dtype)

        def layer(x, inputs):
            block, index, prefix_layer, cache_layer = inputs
            seen = []
            if prefix_layer is not None:
                seen.append(KeyBlock(prefix_layer[0], prefix_layer[1], None))
            if cache_layer is not None:
                seen.append(KeyBlock(cache_layer[0], cache_layer[1], cache_mask))
            x, own_kv = block(x, seen, own_mask, index)
            return x, own_kv if collect else None

        def pair(kv, start, stop):
            if kv is None:
                return None
            kv = kv.layers(start, stop)
            return kv.keys, kv.values

        if prefix is not None:
            prefix = prefix.cast(self.dtype, rows)
        start, collected = 0, []
        for stack in self.blocks:
            stop = start + stack.ln_1.scale.shape[0]
            x, own_kv = jax.lax.scan(
                jax.checkpoint(layer) if self.remat else layer,
                x,
                (
                    stack,
                    jnp.arange(start, stop),
                    pair(prefix, start, stop),
                    pair(cache, start, stop),
                ),
            )
            collected.append(own_kv)
            start = stop
        hidden = self.ln_f(x, self.config.layer_norm_epsilon)
        if not collect:
            return Forward(hidden, None)
        keys, values = jax.tree.map(lambda *x: jnp.concatenate(x), *collected)
        return Forward(hidden, KV(keys, values))

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """f32 logits of hidden states."""
        head = self.token_embedding if self.head is None else self.head
        with jax.named_scope("head"):
            return jnp.einsum(
                "...d,vd->...v",
                hidden,
                head[...].astype(hidden.dtype),
                preferred_element_type=jnp.float32,
            )

    def _positions(self, prefix, slots, length):
        offset = slots + (0 if prefix is None else prefix.position_offset)
        limit = self.config.n_positions
        if offset + length > limit:
            raise InputError(
                f"prefix and cache {offset} + {length} tokens = {offset + length} "
                f"positions; the backbone has {limit}; shorten the text to "
                f"{max(limit - offset, 0)} tokens"
            )
        return offset + jnp.arange(length)[None]
