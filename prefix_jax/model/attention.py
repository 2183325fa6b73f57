"""The one place that knows attention with a prefix: blocks, masks, softmax."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_MASKED = float(np.finfo(np.float32).min)
"""The score of a key that is not seen; its weight is exactly 0 beside one that is."""


class KeyBlock(NamedTuple):
    """One stretch of positions that queries look at: prefix, cache or own tokens.

    N is 1, B, or anything that divides B: B/N neighbouring rows of the batch look at
    the same keys, which are stored once. Heads come before positions, the order in
    which products read them: a cache that lies so is not copied for every token.
    """

    keys: Float[Array, "N H S K"]
    values: Float[Array, "N H S K"]
    mask: Bool[Array, "#M #T S"] | None
    """Which keys each query sees, for each row (M = B) or each N (M = N); None: all."""
    own_softmax: bool = False
    """Whether its weights sum to 1 by themselves, and what it gives is added."""

    @classmethod
    def of(
        cls,
        keys: Float[Array, "N S H K"],
        values: Float[Array, "N S H K"],
        mask: Bool[Array, "#M #T S"] | None,
        own_softmax: bool = False,
    ) -> "KeyBlock":
        """A block of keys and values as `KV` and the layers have them."""
        keys, values = jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2)
        return cls(keys, values, mask, own_softmax)


def causal_mask(length: int, mask: Bool[Array, "B T"] | None) -> Bool[Array, "#B T T"]:
    """Every token sees the real tokens up to and including itself."""
    causal = jnp.tril(jnp.ones((length, length), bool))[None]
    return causal if mask is None else causal & mask[:, None, :]


def prefix_mask(
    real: Bool[Array, "N 1 S"] | None,
    after: Bool[Array, "B T"] | None,
    length: int,
) -> Bool[Array, "#M #T S"] | None:
    """Which of a layer's S = `length` prefix positions each token sees; None: all.

    `real`: those that the layer has (None: all); `after`: the tokens that come after
    an infix, the only ones that see it (None: the prefix is before all of them).
    """
    if after is None:
        return real
    if real is None:
        real = jnp.ones((1, 1, length), bool)
    elif real.shape[0] > 1:
        real = real.repeat(after.shape[0] // real.shape[0], 0)
    return real & after[..., None]


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Products of f32 are f32 on every device; a TPU's or GPU's default rounds more.

    Narrower types are multiplied exactly as it is.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def attend(
    query: Float[Array, "B T H K"],
    blocks: Sequence[KeyBlock],
    scale: Float[Array, ""] | float,
) -> Float[Array, "B T H K"]:
    """Softmax attention of the queries over all blocks, as if they were concatenated.

    Only the scores are concatenated: keys and values are read where they lie, one copy
    for all rows that share them. Scores and softmax are f32 whatever the inputs are,
    which is what GPT-2's `reorder_and_upcast_attn` asks for. A block with a softmax of
    its own adds its mean of values to what the others give.
    """
    rows = query.shape[0]
    out = jnp.zeros_like(query)
    for block, weights in zip(blocks, _weights(query, blocks, scale), strict=True):
        with jax.named_scope("mix"):
            n = block.keys.shape[0]
            part = weights.astype(query.dtype)
            mixed = jnp.einsum(
                "nghts,nhsk->ngthk",
                part.reshape(n, rows // n, *part.shape[1:]),
                block.values,
                precision=precision(query.dtype),
            )
            out += mixed.reshape(query.shape)
    return out


def mass(
    query: Float[Array, "B T H K"],
    blocks: Sequence[KeyBlock],
    scale: Float[Array, ""] | float,
) -> Float[Array, "B H T"]:
    """The share of each query's attention that the first block receives."""
    return _weights(query, blocks, scale)[0].sum(-1)


def _weights(query, blocks, scale) -> list[Float[Array, "B H T S"]]:
    """Attention weights, f32, over the positions of each block."""
    scores = [_scores(query, block, scale) for block in blocks]
    shared = [
        score
        for score, block in zip(scores, blocks, strict=True)
        if not block.own_softmax
    ]
    joint = jax.nn.softmax(jnp.concatenate(shared, axis=-1), axis=-1)
    weights, start = [], 0
    for score, block in zip(scores, blocks, strict=True):
        if block.own_softmax:
            # Where all is masked a softmax is uniform, but nothing is to be added.
            sees = score.max(-1, keepdims=True) > _MASKED
            weights.append(jnp.where(sees, jax.nn.softmax(score, axis=-1), 0.0))
        else:
            stop = start + score.shape[-1]
            weights.append(joint[..., start:stop])
            start = stop
    return weights


@jax.named_scope("scores")
def _scores(query, block, scale) -> Float[Array, "B H T S"]:
    rows, length, heads, width = query.shape
    # G rows share each of the N blocks.
    n = block.keys.shape[0]
    score = jnp.einsum(
        "ngthk,nhsk->nghts",
        query.reshape(n, rows // n, length, heads, width),
        block.keys,
        precision=precision(query.dtype),
        preferred_element_type=jnp.float32,
    )
    score = score * scale
    if block.mask is not None:
        score = jnp.where(_grouped(block.mask, n), score, _MASKED)
    return score.reshape(rows, heads, length, -1)


def _grouped(mask: Bool[Array, "#M #T S"], n: int) -> Bool[Array, "#N #G 1 #T S"]:
    groups = (1, 1) if mask.shape[0] == 1 else (n, mask.shape[0] // n)
    return mask.reshape(*groups, 1, *mask.shape[1:])
