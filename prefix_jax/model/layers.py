"""What transformer layers of every family are made of, and the head."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prefix_jax.model.attention import (
    KeyBlock,
    attend,
    attend_causally,
    attend_fused,
    mass,
    precision,
)
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


def self_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    seen: Sequence[KeyBlock],
    own: Own,
    scale: Float[Array, ""] | float,
    observe: bool,
    qkv: Float[Array, "B T H 3 K"] | None = None,
) -> tuple[Float[Array, "B T H K"], KeyBlock | None, Float[Array, "B H T"] | None]:
    """Tokens attend to the blocks `seen` and to themselves: as `passes.Block` says,
    mixed values, the block of their own, and the attention that the first block has.

    H/G neighbouring heads of queries share keys and values. `qkv`: all three side by
    side, where they lie so already.
    """
    if own.texts is not None:
        if qkv is None:
            share = query.shape[2] // key.shape[2]
            qkv = jnp.stack([query, key.repeat(share, 2), value.repeat(share, 2)], 3)
        return attend_fused(qkv, seen, own.texts, float(scale)), None, None
    block = own.write(key, value)
    blocks = [*seen, block]
    observed = mass(query, blocks, scale) if observe else None
    if own.slots is None:
        return attend_causally(query, seen, block, scale), block, observed
    return attend(query, blocks, scale), block, observed


def recomputed(function: Callable, **named) -> Callable[[Array], Array]:
    """The function of its first argument, of which the backward pass keeps that only.

    To compute the rest again where it is needed is cheaper than to keep it: these
    functions take no time beside that of reading and writing their arrays.
    """
    return jax.checkpoint(lambda x: function(x, **named), prevent_cse=False)
