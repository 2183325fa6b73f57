"""GPT-2: its layers, learned positions and layer norms, on what all families share.

    GPT2(Backbone)
      position_embedding  [M D]          M = n_positions
      ln_f                scale, bias [D]
      blocks              Block: ln_1, qkv, out, ln_2, up, down, act

Written after transformers' modeling_gpt2 (behaviour) and tested against it.
"""

import dataclasses
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from prefix_jax.model.activations import PARAMETERS, activation
from prefix_jax.model.attention import KeyBlock
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.layers import Dense, Own, recomputed, self_attention
from prefix_jax.model.passes import How


class Norm(nnx.Module):
    """Layer norm with f32 statistics, result in the input's type."""

    def __init__(self, shape: tuple[int, ...], epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        centred = wide - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["norm", "up", "act", "down"],
    meta_fields=["activated_by"],
)
@dataclasses.dataclass(frozen=True)
class MLP:
    """The second half of a layer."""

    norm: Norm
    up: Dense
    act: PyTree
    down: Dense
    activated_by: str

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        act = activation(self.activated_by)
        shape = {name: value.astype(x.dtype) for name, value in self.act.items()}
        inner = self.up(recomputed(self.norm)(x))
        return self.down(recomputed(act, **shape)(inner))


class Block(nnx.Module):
    """A stack of GPT-2's layers."""

    def __init__(self, config: GPT2Config, layers: int, key: PRNGKeyArray):
        self.config = config
        d, h, k, f = config.n_embd, config.n_head, config.head_width, config.mlp_width
        keys = jax.random.split(key, 4)
        # The two projections into the residual stream start smaller (GPT-2 paper).
        deviation = config.initializer_range
        small = deviation / (2 * config.n_layer) ** 0.5
        self.ln_1 = Norm((layers, d), config.layer_norm_epsilon)
        self.qkv = Dense((layers, d, h, 3, k), 1, deviation, keys[0])
        self.out = Dense((layers, h, k, d), 2, small, keys[1])
        self.ln_2 = Norm((layers, d), config.layer_norm_epsilon)
        self.up = Dense((layers, d, f), 1, deviation, keys[2])
        self.down = Dense((layers, f, d), 1, small, keys[3])
        parameters = PARAMETERS.get(config.activation_function, {})
        self.act = nnx.Dict(
            {
                name: nnx.Param(jnp.array([start] * layers))
                for name, start in parameters.items()
            }
        )

    def attend(
        self,
        x: Float[Array, "B T D"],
        seen: list[KeyBlock],
        own: Own,
        index: Int[Array, ""],
        places: None,
        observe: bool,
    ) -> tuple[Float[Array, "B T D"], KeyBlock | None, Array | None]:
        """As `passes.Block` says."""
        config = self.config
        scale = config.head_width**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale = scale / (index + 1)
        with jax.named_scope("attention"):
            normal = recomputed(self.ln_1)(x)
            qkv = self.qkv(normal)
            query, key, value = jnp.moveaxis(qkv, 3, 0)
            mixed, own_block, observed = self_attention(
                query, key, value, seen, own, scale, observe, qkv
            )
            return x + self.out(mixed), own_block, observed

    @property
    def mlp(self) -> MLP:
        """As `passes.Block` says."""
        activated_by = self.config.activation_function
        return MLP(self.ln_2, self.up, self.act, self.down, activated_by)


class GPT2(Backbone):
    """GPT-2 of any shape and variant."""

    position_embedding: nnx.Param

    def __init__(
        self,
        config: GPT2Config,
        *,
        key: PRNGKeyArray,
        dtype: jnp.dtype | str = "float32",
        **how: Unpack[How],
    ):
        """Random f32 weights as GPT-2 starts training with; `dtype` is computed in."""
        keys = self.keys(key)
        layers = Block(config, config.n_layer, keys[2])
        super().__init__(config, layers, key=key, dtype=dtype, **how)
        shape = config.n_positions, config.n_embd
        random = jax.random.normal(keys[1], shape)
        self.position_embedding = nnx.Param(config.initializer_range * random)
        self.ln_f = Norm((config.n_embd,), config.layer_norm_epsilon)

    def at_positions(
        self, x: Float[Array, "B T D"], positions: Int[Array, "#B T"]
    ) -> tuple[Float[Array, "B T D"], None]:
        return x + self.position_embedding[...][positions].astype(x.dtype), None
