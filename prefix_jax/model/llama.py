"""The Llama family: rotary positions, RMS norms, gated MLPs, shared keys and values.

    Llama(Backbone)
      ln_f      scale [D]
      blocks    Block: ln_1, qkv, q_norm, k_norm, out, ln_2, gate_up, down

Written after transformers' modeling_llama, _mistral, _qwen2 and _qwen3 (behaviour) and
tested against them.
"""

import dataclasses
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from prefix_jax.model.activations import activation
from prefix_jax.model.attention import KeyBlock
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.layers import Dense, Own, recomputed, self_attention
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.passes import How
from prefix_jax.model.rope import Rotation


class Norm(nnx.Module):
    """Root mean square norm with f32 statistics, result in the input's type."""

    def __init__(self, shape: tuple[int, ...], epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(shape))

    def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
        wide = x.astype(jnp.float32)
        square = jnp.square(wide).mean(-1, keepdims=True)
        normal = wide * jax.lax.rsqrt(square + self.epsilon)
        return (normal * self.scale[...]).astype(x.dtype)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["norm", "gate_up", "down"],
    meta_fields=["activated_by"],
)
@dataclasses.dataclass(frozen=True)
class MLP:
    """The second half of a layer."""

    norm: Norm
    gate_up: Dense
    down: Dense
    activated_by: str

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate_up = self.gate_up(recomputed(self.norm)(x))
        return self.down(recomputed(self._gated)(gate_up))

    def _gated(self, gate_up: Float[Array, "B T 2 F"]) -> Float[Array, "B T F"]:
        act = activation(self.activated_by)
        return act(gate_up[:, :, 0]) * gate_up[:, :, 1]


class Block(nnx.Module):
    """A stack of layers.

    The H heads of queries look at the keys and values of G = H/J: `qkv` gives each of
    these its J queries, its key and its value, so that they can be dealt out to devices
    together.
    """

    def __init__(self, config: LlamaConfig, layers: int, key: PRNGKeyArray):
        self.config = config
        d, heads, k = config.n_embd, config.kv_heads, config.head_width
        share, f = config.n_head // heads, config.n_inner
        keys = jax.random.split(key, 4)
        deviation = config.initializer_range
        bias, mlp_bias = config.attention_bias, config.mlp_bias
        self.ln_1 = Norm((layers, d), config.rms_norm_eps)
        self.qkv = Dense(
            (layers, d, heads, share + 2, k),
            1,
            deviation,
            keys[0],
            bias=config.qkv_bias,
        )
        self.q_norm = nnx.data(
            Norm((layers, k), config.rms_norm_eps) if config.qk_norm else None
        )
        self.k_norm = nnx.data(
            Norm((layers, k), config.rms_norm_eps) if config.qk_norm else None
        )
        self.out = Dense(
            (layers, config.n_head, k, d), 2, deviation, keys[1], bias=bias
        )
        self.ln_2 = Norm((layers, d), config.rms_norm_eps)
        self.gate_up = Dense((layers, d, 2, f), 1, deviation, keys[2], bias=mlp_bias)
        self.down = Dense((layers, f, d), 1, deviation, keys[3], bias=mlp_bias)

    def attend(
        self,
        x: Float[Array, "B T D"],
        seen: list[KeyBlock],
        own: Own,
        index: Int[Array, ""],
        places: Rotation,
        observe: bool,
    ) -> tuple[Float[Array, "B T D"], KeyBlock | None, Array | None]:
        """As `passes.Block` says."""
        del index
        scale = self.config.head_width**-0.5
        with jax.named_scope("attention"):
            query, key, value = self._heads(recomputed(self.ln_1)(x), places)
            mixed, own_block, observed = self_attention(
                query, key, value, seen, own, scale, observe
            )
            return x + self.out(mixed), own_block, observed

    @property
    def mlp(self) -> MLP:
        """As `passes.Block` says."""
        activated_by = self.config.activation_function
        return MLP(self.ln_2, self.gate_up, self.down, activated_by)

    def _heads(self, x: Float[Array, "B T D"], places: Rotation):
        """Queries [B T H K], keys and values [B T G K], turned to their places."""
        qkv = self.qkv(x)
        share = qkv.shape[3] - 2
        query, key, value = jnp.split(qkv, [share, share + 1], 3)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = places.apply(query), places.apply(key)
        rows, length, _, _, width = qkv.shape
        return (
            query.reshape(rows, length, -1, width),
            key[:, :, :, 0],
            value[:, :, :, 0],
        )


class Llama(Backbone):
    """A model of the Llama family, of any shape and variant."""

    def __init__(
        self,
        config: LlamaConfig,
        *,
        key: PRNGKeyArray,
        dtype: jnp.dtype | str = "float32",
        **how: Unpack[How],
    ):
        """Random f32 weights as training starts with; `dtype` is computed in."""
        layers = Block(config, config.n_layer, self.keys(key)[2])
        super().__init__(config, layers, key=key, dtype=dtype, **how)
        self.rope = config.rope
        self.ln_f = Norm((config.n_embd,), config.rms_norm_eps)

    def at_positions(
        self, x: Float[Array, "B T D"], positions: Int[Array, "#B T"]
    ) -> tuple[Float[Array, "B T D"], Rotation]:
        return x, self.rope.rotation(positions, self.config.head_width)
