"""Stacks of layers, and what a pass through them takes and gives."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypedDict, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from prefix_jax.config import RematKeeps
from prefix_jax.errors import InputError, closest
from prefix_jax.model.attention import KeyBlock
from prefix_jax.model.kv import KV
from prefix_jax.model.layers import Own, Slots

KEPT = {
    "nothing": None,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""JAX's policies for `How.remat_keeps`: attention's products alone have batches."""


class How(TypedDict, total=False):
    """How a backbone computes; the values do not depend on it, but for rounding."""

    remat: bool
    """Whether each layer is computed again in the backward pass,"""
    remat_keeps: RematKeeps
    """but for its `products` with weights (default: `nothing` is kept)."""
    unroll: bool
    """Compile each layer for itself instead of one that is scanned, and keep it in a
    stack of its own, which need not be copied out of a larger one at each step."""
    fused: bool
    """Attend with kernels for GPUs or TPUs (`model.flash`), wherever they can: in
    bfloat16, over whole texts without a `mask`. In a program for several devices of
    your own they must know the mesh (`jax.set_mesh`); in a `jax.shard_map` of your own
    give `check_vma=False`. A TPU's have rows of up to 8,192 positions (heads of 64)."""


def checked(how: Mapping[str, object]) -> dict[str, object]:
    """All of `How`, with what is meant where nothing is said.

    Raises InputError for what is no option of it, and no value of one.
    """
    usual = {"remat": False, "remat_keeps": "nothing", "unroll": False, "fused": False}
    for name, value in how.items():
        if name not in usual:
            raise InputError(
                f"a backbone has no option {name}; expected some of "
                f"{', '.join(usual)}{closest(name, usual)}"
            )
        known = KEPT if name == "remat_keeps" else (False, True)
        if not isinstance(value, str | bool) or value not in known:
            raise InputError(
                f"{name} is {value!r}; expected {' or '.join(map(repr, known))}"
            )
    return usual | dict(how)


class Cache(NamedTuple):
    """Keys and values of tokens that were read before, for each layer."""

    layers: Sequence[Slots]
    mask: Bool[Array, "#B #T S"]
    """Which slots each row, or each of its tokens, sees."""
    start: Int[Array, ""] | None = None
    """Where the tokens that are read now write theirs, in place of a block of their
    own: `mask` says which of those they see, too. None: the cache is only read."""
    positions: Int[Array, "#B S"] | None = None
    """Of the tokens in the slots; for a backbone with `windows`."""


class Forward(NamedTuple):
    """What a pass through the layers gives."""

    hidden: Float[Array, "B T D"]
    """After the last norm, unless `finish` is still to be called; in the backbone's
    dtype."""
    kv: KV | None
    """Keys and values of the tokens themselves, if asked for."""
    written: list[Slots]
    """The layers of the cache that has a `start`, with the tokens' in their place."""
    prefix_mass: Float[Array, "L B H T"] | None
    """The share of attention that each token pays to the prefix, if asked for."""
    finish: "Finish | None"
    """What was left out, if that was asked for."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Finish:
    """What follows the last attention: it is done to each token by itself."""

    mlp: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Hidden states as the head reads them."""
        return self.norm(x + self.mlp(x))


def finished(
    finish: Finish | None, hidden: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """Hidden states as the head reads them, of some tokens of a `Forward`."""
    return hidden if finish is None else finish(hidden)


@runtime_checkable
class Block(Protocol):
    """A stack of layers, of which `lax.scan` makes one: that is what is called."""

    def attend(
        self,
        x: Float[Array, "B T D"],
        seen: list[KeyBlock],
        own: Own,
        index: Int[Array, ""],
        places: PyTree,
        observe: bool,
    ) -> tuple[Float[Array, "B T D"], KeyBlock | None, Array | None]:
        """The first half of a layer, the one of that `index`: `x` with what attention
        adds to it, the block that holds these tokens' keys and values (none where
        attention is fused), and, if asked for, the attention that the first block of
        `seen` receives, [B H T]. `places` is what the backbone's `at_positions` gives
        for the layers."""
        ...

    @property
    def mlp(self) -> Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]:
        """The second half: what is to be added to that then, a pytree of its own
        parameters."""
        ...


def stacked(blocks: Sequence[Block], sizes: Sequence[int]) -> list[Block]:
    """The layers of `blocks` in stacks of these sizes."""
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *blocks)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [
        jax.tree.map(lambda x, i=start, n=size: x[i : i + n], whole)
        for start, size in zip(starts, sizes, strict=True)
    ]
