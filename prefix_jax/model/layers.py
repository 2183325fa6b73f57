"""What transformer layers of every family are made of, and the head."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prefix_jax.model.attention import KeyBlock, precision
from prefix_jax.model.flash import Texts


class Dense(nnx.Module):
    """A matrix and perhaps a bias, cast to the input's type where they are used."""

    def __init__(
        self,
        shape: tuple[int, ...],
        inputs: int,
        deviation: float,
        key: PRNGKeyArray,
        *,
        bias: bool = True,
    ):
        """`shape`: [layers, *inputs, *outputs] with `inputs` input axes."""
        self.inputs = inputs
        self.kernel = nnx.Param(deviation * jax.random.normal(key, shape))
        start = jnp.zeros((shape[0], *shape[1 + inputs :])) if bias else None
        self.bias = nnx.data(None if start is None else nnx.Param(start))

    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """One layer's product: `x` ends in the input axes, the result in the others."""
        kernel = self.kernel[...].astype(x.dtype)
        outputs = kernel.shape[self.inputs :]
        # As a matrix: of a product over several axes, XLA copies the kernel transposed.
        rows = x.reshape(*x.shape[:2], -1)
        matrix = kernel.reshape(rows.shape[-1], -1)
        product = jnp.matmul(rows, matrix, precision=precision(x.dtype))
        product = product.reshape(*x.shape[:2], *outputs)
        return (
            product if self.bias is None else product + self.bias[...].astype(x.dtype)
        )


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


def recomputed(function: Callable, **named) -> Callable[[Array], Array]:
    """The function of its first argument, of which the backward pass keeps that only.

    To compute the rest again where it is needed is cheaper than to keep it: these
    functions take no time beside that of reading and writing their arrays.
    """
    return jax.checkpoint(lambda x: function(x, **named), prevent_cse=False)
