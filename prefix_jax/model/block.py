"""A stack of GPT-2's transformer layers, what they are made of, and the head."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prefix_jax.model.activations import PARAMETERS, activation
from prefix_jax.model.attention import (
    KeyBlock,
    attend,
    attend_causally,
    attend_fused,
    mass,
    precision,
)
from prefix_jax.model.flash import Texts
from prefix_jax.model.gpt2_config import GPT2Config


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
        self.inputs = inputs
        self.kernel = nnx.Param(deviation * jax.random.normal(key, shape))
        self.bias = nnx.Param(jnp.zeros((shape[0], *shape[1 + inputs :])))

    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """One layer's product: `x` ends in the input axes, the result in the others."""
        kernel = self.kernel[...].astype(x.dtype)
        outputs = kernel.shape[self.inputs :]
        # As a matrix: of a product over several axes, XLA copies the kernel transposed.
        rows = x.reshape(*x.shape[:2], -1)
        matrix = kernel.reshape(rows.shape[-1], -1)
        product = jnp.matmul(rows, matrix, precision=precision(x.dtype))
        return product.reshape(*x.shape[:2], *outputs) + self.bias[...].astype(x.dtype)


def head_logits(
    hidden: Float[Array, "... D"], head: Float[Array, "V D"]
) -> Float[Array, "... V"]:
    """f32 logits of hidden states, which set the type of the product."""
    return jnp.einsum(
        "...d,vd->...v",
        hidden,
        head.astype(hidden.dtype),
        precision=precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )


class Slots(NamedTuple):
    """One layer's room for keys and values, lying as in `KeyBlock`."""

    keys: Float[Array, "N H K S"]
    values: Float[Array, "N H S K"]


class Own(NamedTuple):
    """Who sees the tokens' own keys and values, and where these are written.

    They are written before any is read: an update of slots whose old value nothing else
    reads happens in place, where one that is read first is copied for every token.
    """

    mask: Bool[Array, "#B #T S"] | None
    """None: `texts` say it."""
    slots: Slots | None = None
    """None: nothing is kept, and S = T."""
    start: Int[Array, ""] | int = 0
    """The first slot that is written."""
    texts: Texts | None = None
    """For fused attention, in place of a mask and slots."""

    def write(
        self, keys: Float[Array, "B T H K"], values: Float[Array, "B T H K"]
    ) -> KeyBlock:
        """What the tokens see of themselves, and of what the slots held before.

        N slots are shared by B/N neighbouring rows, whose tokens lie there side by
        side: the rows' first ones, then their second ones, then ...
        """
        slots = self.slots
        if slots is None:
            return KeyBlock.of(keys, values, self.mask)

        def side_by_side(x):
            return x.reshape(len(slots.keys), -1, *x.shape[2:])

        new = KeyBlock.of(side_by_side(keys), side_by_side(values), None)
        put = jax.lax.dynamic_update_slice_in_dim
        return KeyBlock(
            put(slots.keys, new.keys, self.start, 3),
            put(slots.values, new.values, self.start, 2),
            self.mask,
        )


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
        self.qkv = Dense((layers, d, h, 3, k), 1, deviation, keys[0])
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
        own: Own,
        index: Int[Array, ""],
        observe: bool,
    ) -> tuple[Float[Array, "B T D"], KeyBlock | None, Array | None]:
        """One layer: its output, the block that holds these tokens' keys and values
        (none where attention is fused), and, if asked for, the attention that the first
        block receives, [B H T]."""
        config = self.config
        scale = config.head_width**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale = scale / (index + 1)
        with jax.named_scope("attention"):
            normal = _recomputed(self.ln_1, config.layer_norm_epsilon)(x)
            qkv = self.qkv(normal)
            own_block = observed = None
            if own.texts is not None:
                mixed = attend_fused(qkv, seen, own.texts, float(scale))
            else:
                query, key, value = jnp.moveaxis(qkv, 3, 0)
                own_block = own.write(key, value)
                blocks = [*seen, own_block]
                observed = mass(query, blocks, scale) if observe else None
                if own.slots is None:
                    mixed = attend_causally(query, seen, own_block, scale)
                else:
                    mixed = attend(query, blocks, scale)
            x += self.out(mixed)
        with jax.named_scope("mlp"):
            normal = _recomputed(self.ln_2, config.layer_norm_epsilon)(x)
            act = activation(config.activation_function)
            shape = {name: value.astype(x.dtype) for name, value in self.act.items()}
            x += self.down(_recomputed(act, **shape)(self.up(normal)))
        return x, own_block, observed


def _recomputed(function: Callable, *arguments, **named) -> Callable[[Array], Array]:
    """The function of its first argument, of which the backward pass keeps that only.

    To compute the rest again where it is needed is cheaper than to keep it: these
    functions take no time beside that of reading and writing their arrays.
    """
    return jax.checkpoint(lambda x: function(x, *arguments, **named), prevent_cse=False)
