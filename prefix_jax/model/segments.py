"""Several texts packed into one row: what each token sees, and where it stands.

`segments` i32 [B T] numbers the texts of a row from 1 on, each in one stretch; 0 is
padding. To a text its neighbours do not exist: that is the law of this module.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def segment_mask(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Every token sees those of its own text up to and including itself."""
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return causal & (segments[:, :, None] == segments[:, None, :])


def segment_starts(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Where in its row each token's text begins."""
    number = jnp.arange(segments.shape[1])
    begins = jnp.diff(segments, axis=1, prepend=-1) != 0
    # The barrier keeps XLA from computing it anew for every number that is looked up by
    # it, which it does on GPUs.
    return jax.lax.optimization_barrier(
        jax.lax.cummax(jnp.where(begins, number, 0), axis=1)
    )


def segment_stops(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Where in its row each token's text ends: one behind its last token."""
    length = segments.shape[1]
    stops = length - segment_starts(segments[:, ::-1])
    return stops[:, ::-1]


def within_segments(counts: Int[Array, "B T"], segments: Int[Array, "B T"]):
    """Running sums of `counts` [B T] that begin anew with each text."""
    total = jnp.cumsum(counts, axis=1)
    starts = segment_starts(segments)
    return total - jnp.take_along_axis(total - counts, starts, axis=1)


def segments_with(marks: Bool[Array, "B T"], segments: Int[Array, "B T"]):
    """How many texts have a token that is marked, i32 []."""

    # Row by row, so that devices need no more than their own.
    def of_row(marks, segments):
        has = jnp.zeros(len(segments) + 1, bool)
        return has.at[segments].max(marks & (segments > 0)).sum()

    return jax.vmap(of_row)(marks, segments).sum()
