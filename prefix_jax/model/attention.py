"""The one place that knows attention with a prefix: blocks, masks, softmax."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from prefix_jax.model.flash import Texts, flash_attention

_MASKED = float(np.finfo(np.float32).min)
"""The score of a key that is not seen; its weight is exactly 0 beside one that is."""

STRETCHES = 4
"""Causal attention takes its queries in so many parts,"""
SHORTEST_STRETCH = 128
"""or fewer, where products of fewer queries than this would be slow."""


RowGradients = tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]] | None


class KeyBlock(NamedTuple):
    """One stretch of positions that queries look at: prefix, cache or own tokens.

    N is 1, B, or anything that divides B: B/N neighbouring rows of the batch look at
    the same keys, which are stored once. Heads come before positions, and keys have
    positions last: the order in which products read them, so that neither is copied or
    transposed for every token.
    """

    keys: Float[Array, "N H K S"]
    values: Float[Array, "N H S K"]
    mask: Bool[Array, "#M #T S"] | None
    """Which keys each query sees, for each row (M = B) or each N (M = N); None: all."""
    own_softmax: bool = False
    """Whether its weights sum to 1 by themselves, and what it gives is added."""
    row_gradients: RowGradients = None
    """For `attend_fused`: keys and values once more, for each row. They are never read;
    the gradient that a row has for the shared ones is theirs."""

    @classmethod
    def of(
        cls,
        keys: Float[Array, "N S H K"],
        values: Float[Array, "N S H K"],
        mask: Bool[Array, "#M #T S"] | None,
        own_softmax: bool = False,
        row_gradients: RowGradients = None,
    ) -> "KeyBlock":
        """A block of keys and values as `KV` and the layers have them."""
        keys, values = keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)
        return cls(keys, values, mask, own_softmax, row_gradients)

    def of_queries(self, start: int, stop: int) -> "KeyBlock":
        """The same for some of the queries only."""
        if self.mask is None or self.mask.shape[1] == 1:
            return self
        return self._replace(mask=self.mask[:, start:stop])

    def up_to(self, stop: int) -> "KeyBlock":
        """The first positions only."""
        mask = None if self.mask is None else self.mask[..., :stop]
        return self._replace(
            keys=self.keys[..., :stop], values=self.values[:, :, :stop], mask=mask
        )


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


def attend_causally(
    query: Float[Array, "B T H K"],
    seen: Sequence[KeyBlock],
    own: KeyBlock,
    scale: Float[Array, ""] | float,
) -> Float[Array, "B T H K"]:
    """`attend` over `seen` and the queries' `own` keys, of which none sees later ones.

    Queries are taken in a few stretches, each with the keys up to its end: of long
    texts, three eighths of the weights over own keys, which the mask would only hide,
    are never computed.
    """
    # Their gradients are sums over stretches, to be added up before what comes next:
    # fused with the transposes of a layer's products, a CPU takes three times as long.
    query, keys, values = jax.lax.optimization_barrier((query, own.keys, own.values))
    own = own._replace(keys=keys, values=values)
    length = query.shape[1]
    size = max(SHORTEST_STRETCH, -(-length // STRETCHES))
    return jnp.concatenate(
        [
            attend(
                query[:, start : start + size],
                [
                    *(block.of_queries(start, start + size) for block in seen),
                    own.of_queries(start, start + size).up_to(start + size),
                ],
                scale,
            )
            for start in range(0, length, size)
        ],
        axis=1,
    )


def attend_fused(
    qkv: Float[Array, "B T H 3 K"],
    seen: Sequence[KeyBlock],
    texts: Texts,
    scale: float,
) -> Float[Array, "B T H K"]:
    """`attend_causally` by fused kernels, to a prefix without a mask (or none).

    `texts` say which of their own keys the queries see.
    """
    prefix, row_gradients, heads = None, None, qkv.shape[2]
    for block in seen:
        prefix = block.keys.transpose(0, 3, 1, 2), block.values.swapaxes(1, 2)
        share = heads // block.keys.shape[1]
        prefix, row_gradients = jax.tree.map(
            lambda x, share=share: x.repeat(share, 2), (prefix, block.row_gradients)
        )
    return flash_attention(qkv, prefix, texts, scale, row_gradients)


def attend(
    query: Float[Array, "B T H K"],
    blocks: Sequence[KeyBlock],
    scale: Float[Array, ""] | float,
) -> Float[Array, "B T H K"]:
    """Softmax attention of the queries over all blocks, as if they were concatenated.

    Nothing is: keys and values are read where they lie, one copy for all rows and all
    heads of queries that share them, and blocks are merged by their sums. Scores and
    softmax are f32 whatever the inputs are, which is what GPT-2's
    `reorder_and_upcast_attn` asks for. A block with a softmax of its own adds its mean
    of values to what the others give.
    """
    heads = query.shape[2]
    query = _heads_as_rows(query, blocks)
    groups = _groups(blocks)
    mixed = jnp.zeros((), query.dtype)
    for some in _softmaxes(blocks):
        weights, total = _weights(query, some, scale, groups)
        with jax.named_scope("mix"):
            parts = [
                _mix(own, block.values, query.dtype, groups)
                for own, block in zip(weights, some, strict=True)
            ]
            # Divided here, not weight by weight: S/K times less work, and its gradient
            # is a sum over K instead of S.
            mixed += (sum(parts) / total).astype(query.dtype)
    return _rows_as_heads(_by_row(mixed, query.shape), heads)


def mass(
    query: Float[Array, "B T H K"],
    blocks: Sequence[KeyBlock],
    scale: Float[Array, ""] | float,
) -> Float[Array, "B H T"]:
    """The share of each query's attention that the first block receives."""
    heads = query.shape[2]
    query = _heads_as_rows(query, blocks)
    weights, total = _weights(query, blocks, scale, _groups(blocks))
    share = weights[0].sum(-1, keepdims=True) / total
    share = _rows_as_heads(_by_row(share, (*query.shape[:3], 1)), heads)
    return jnp.swapaxes(share[..., 0], 1, 2)


# Where keys have fewer heads than queries (grouped-query attention, Ainslie et al.
# 2023), neighbouring heads of queries that look at the same keys are taken as rows that
# do: J of them, next to each other.


def _heads_as_rows(
    query: Float[Array, "B T heads K"], blocks: Sequence[KeyBlock]
) -> Float[Array, "rows T H K"]:
    rows, length, _, width = query.shape
    heads = blocks[0].keys.shape[1]
    x = query.reshape(rows, length, heads, -1, width)
    return x.transpose(0, 3, 1, 2, 4).reshape(-1, length, heads, width)


def _rows_as_heads(
    x: Float[Array, "rows T H K"], number: int
) -> Float[Array, "B T heads K"]:
    _, length, heads, width = x.shape
    x = x.reshape(-1, number // heads, length, heads, width)
    return x.transpose(0, 2, 3, 1, 4).reshape(-1, length, number, width)


# Rows that look at the same keys are one group: of G groups, the Q = B/G * T queries of
# each, row by row, are the rows of one matrix for each head, [G H Q ...]. Scores of all
# blocks are brought to as many groups as the finest of them has.


def _groups(blocks: Sequence[KeyBlock]) -> int:
    return math.lcm(*(block.keys.shape[0] for block in blocks))


def _by_group(x: Float[Array, "B T H K"], groups: int) -> Float[Array, "G H Q K"]:
    x = x.reshape(groups, -1, *x.shape[2:])
    return jnp.swapaxes(x, 1, 2)


def _by_row(x: Float[Array, "G H Q K"], shape) -> Float[Array, "B T H K"]:
    return jnp.swapaxes(x, 1, 2).reshape(shape)


def _regrouped(x: Float[Array, "F H Q S"], groups: int) -> Float[Array, "G H P S"]:
    """The same queries in more groups, or in fewer."""
    if len(x) == groups:
        return x
    return _by_group(jnp.swapaxes(x, 1, 2), groups)


def _softmaxes(blocks) -> list[list[KeyBlock]]:
    """The blocks that share a softmax, then each that has its own."""
    shared = [block for block in blocks if not block.own_softmax]
    return [shared, *([block] for block in blocks if block.own_softmax)]


def _weights(query, blocks, scale, groups) -> tuple[list[Array], Array]:
    """Attention weights over the positions of each block, and what they all sum to.

    f32 [G H Q S] each, and [G H Q 1]: weights are relative to the largest of their
    query, and still to be divided by the sum.
    """
    scores = [_scores(query, block, scale, groups) for block in blocks]
    largest = [score.max(-1, keepdims=True) for score in scores]
    # Whatever is taken off cancels, and so has no gradient.
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, largest))
    weights = [jnp.exp(score - peak) for score in scores]
    if blocks[0].own_softmax:
        # Where all is masked a softmax is uniform, but nothing is to be added.
        weights = [jnp.where(peak > _MASKED, weights[0], 0.0)]
        return weights, jnp.where(peak > _MASKED, weights[0].sum(-1, keepdims=True), 1)
    totals = [part.sum(-1, keepdims=True) for part in weights]
    return weights, functools.reduce(jnp.add, totals)


def _mix(weights, values, dtype, groups) -> Float[Array, "G H Q K"]:
    """Values summed by their weights, f32."""
    mixed = jnp.einsum(
        "nhqs,nhsk->nhqk",
        _regrouped(weights.astype(dtype), values.shape[0]),
        values,
        precision=precision(dtype),
        preferred_element_type=jnp.float32,
    )
    return _regrouped(mixed, groups)


@jax.named_scope("scores")
def _scores(query, block, scale, groups) -> Float[Array, "G H Q S"]:
    score = jnp.einsum(
        "nhqk,nhks->nhqs",
        _by_group(query, block.keys.shape[0]),
        block.keys,
        precision=precision(query.dtype),
        preferred_element_type=jnp.float32,
    )
    score = _regrouped(score, groups) * scale
    if block.mask is None:
        return score
    mask = _by_query(block.mask, query.shape[:2], groups)
    return jnp.where(mask, score, _MASKED)


def _by_query(
    mask: Bool[Array, "#M #T S"], shape: tuple[int, int], groups: int
) -> Bool[Array, "#G 1 #Q S"]:
    """The keys that each query of each group sees, for queries of `shape` B, T."""
    rows, length = shape
    if len(mask) == 1 and (mask.shape[1] == 1 or groups == rows):
        return mask[:, None]
    if 1 < len(mask) < rows:
        mask = mask.repeat(rows // len(mask), 0)
    mask = jnp.broadcast_to(mask, (rows, length, mask.shape[-1]))
    return mask.reshape(groups, 1, -1, mask.shape[-1])
