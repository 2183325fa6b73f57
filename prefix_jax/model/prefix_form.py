"""What every kind of prefix is told alike, and the `KV` that comes of it."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prefix_jax.errors import InputError
from prefix_jax.model.kv import KV
from prefix_jax.prefix_config import Placement, PositionMode

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Form:
    """What every kind is told alike: where it stands, and how much of it is seen."""

    position_mode: PositionMode = "shifted"
    placement: Placement = "prefix"
    dropout: float = 0.0
    """Share of the elements dropped at each training step."""
    nested: tuple[int, ...] = ()
    """Lengths of which each training step draws one."""
    lengths: tuple[int, ...] | None = None
    """Positions in each layer; None: all positions in every layer. Layers and positions
    that are not there have no parameters."""

    @property
    def layers(self) -> Int[np.ndarray, "_"] | slice:
        """Index of the layers that have the prefix."""
        return slice(None) if self.lengths is None else np.flatnonzero(self.lengths)

    @property
    def _there(self) -> Bool[np.ndarray, "L P"]:
        lengths = np.array(self.lengths)
        return np.arange(lengths.max()) < lengths[:, None]

    def pack(self, x: Float[Array, "L P H K"]) -> Float[Array, "..."]:
        """What is trained of it: all, or the R positions that are there [R H K]."""
        return x if self.lengths is None else x[np.nonzero(self._there)]

    def unpack(self, x: Float[Array, "..."]) -> Float[Array, "L P H K"]:
        """The inverse of `pack`, zero where nothing is there."""
        if self.lengths is None:
            return x
        there = self._there
        return jnp.zeros((*there.shape, *x.shape[1:])).at[np.nonzero(there)].set(x)

    def drop(self, tree: T, key: PRNGKeyArray | None) -> T:
        """The tree with `dropout` at a training step, whose key is given."""
        if key is None or self.dropout == 0.0:
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        kept = [
            jnp.where(
                jax.random.bernoulli(one, 1 - self.dropout, x.shape),
                x / (1 - self.dropout),
                0.0,
            )
            for one, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, kept)

    def kv(
        self,
        keys: Float[Array, "L P H K"],
        values: Float[Array, "L P H K"],
        gate: Float[Array, "l H"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> KV:
        """The prefix that text sees; at a training step (`key`) one of `nested`."""
        if gate is not None:
            # softmax(q K^T) (g V) = g softmax(q K^T) V: a gate on a softmax of its own
            # is a factor of values. On the shared softmax it would be a bias of the
            # scores, which keys cannot hold, and its start at 0 an infinite one.
            every = jnp.zeros((len(values), gate.shape[1])).at[self.layers].set(gate)
            values = values * every[:, None, :, None]
        lengths = None
        if self.lengths is not None:
            lengths = jnp.asarray(self.lengths, jnp.int32)[:, None]
        kv = KV(
            keys[:, None],
            values[:, None],
            self.position_mode,
            lengths,
            placement=self.placement,
            own_softmax=gate is not None,
        )
        if key is None or not self.nested:
            return kv
        return kv.limit(jax.random.choice(key, jnp.asarray(self.nested)))


def layer_lengths(
    layers: Sequence[int] | None,
    lengths: Sequence[int] | None,
    length: int,
    n_layer: int,
) -> tuple[int, ...] | None:
    """Positions in each layer, from `PrefixConfig`'s settings; None: `length` in all.

    Raises InputError for layers that the backbone does not have.
    """
    if lengths is not None and len(lengths) != n_layer:
        raise InputError(
            f"prefix.lengths has {len(lengths)} numbers; the backbone has {n_layer} "
            "layers: give one number for each"
        )
    if layers is not None and max(layers) >= n_layer:
        raise InputError(
            f"prefix.layers has {max(layers)}; the backbone has {n_layer} layers, 0 to "
            f"{n_layer - 1}"
        )
    if layers is not None:
        lengths = [length if layer in layers else 0 for layer in range(n_layer)]
    if lengths is None or min(lengths) == length:
        return None
    return tuple(lengths)
