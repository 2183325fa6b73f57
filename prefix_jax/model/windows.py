"""Layers that see no further back than a window (Beltagy et al. 2020, section 3.1)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Windows:
    """Which keys are near enough to the tokens at `positions`, layer by layer."""

    def __init__(self, sizes: Sequence[int], positions: Int[Array, "#B T"]):
        """`sizes`: for each layer, how many positions a token sees, itself included."""
        self.sizes = jnp.asarray(sizes)
        self.positions = positions

    def within(
        self,
        layer: Int[Array, ""],
        mask: Bool[Array, "#M #T S"] | None,
        keys_at: Int[Array, "#N S"],
    ) -> Bool[Array, "#B #T S"]:
        """The `mask` of keys at these positions, without those beyond the window.

        As in transformers, whose prefix counts as text before the text.
        """
        keys_at, queries_at = keys_at[:, None, :], self.positions[:, :, None]
        parts = [keys_at, queries_at] if mask is None else [keys_at, queries_at, mask]
        rows = max(len(part) for part in parts)

        def for_all(x):  # rows that share keys are neighbours
            return x if len(x) == 1 else x.repeat(rows // len(x), 0)

        near = for_all(queries_at) - for_all(keys_at) < self.sizes[layer]
        return near if mask is None else for_all(mask) & near
