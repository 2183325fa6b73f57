"""The one place that knows attention with a prefix: blocks, masks, softmax."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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

    @classmethod
    def of(
        cls,
        keys: Float[Array, "N S H K"],
        values: Float[Array, "N S H K"],
        mask: Bool[Array, "#M #T S"] | None,
    ) -> "KeyBlock":
        """A block of keys and values as `KV` and the layers have them."""
        return cls(jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2), mask)


def causal_mask(length: int, mask: Bool[Array, "B T"] | None) -> Bool[Array, "#B T T"]:
    """Every token sees the real tokens up to and including itself."""
    causal = jnp.tril(jnp.ones((length, length), bool))[None]
    return causal if mask is None else causal & mask[:, None, :]


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
    which is what GPT-2's `reorder_and_upcast_attn` asks for.
    """
    rows = query.shape[0]
    weights = _weights(query, blocks, scale).astype(query.dtype)
    out = jnp.zeros_like(query)
    start = 0
    for block in blocks:
        with jax.named_scope("mix"):
            n, stop = block.keys.shape[0], start + block.keys.shape[2]
            part = weights[..., start:stop]
            start = stop
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
    first = blocks[0].keys.shape[2]
    return _weights(query, blocks, scale)[..., :first].sum(-1)


def _weights(query, blocks, scale) -> Float[Array, "B H T S"]:
    """Attention weights, f32, over the positions of all blocks in order."""
    rows, length, heads, width = query.shape
    scores = []
    for block in blocks:
        with jax.named_scope("scores"):
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
                score = jnp.where(
                    _grouped(block.mask, n), score, jnp.finfo(jnp.float32).min
                )
            scores.append(score.reshape(rows, heads, length, -1))
    return jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)


def _grouped(mask: Bool[Array, "#M #T S"], n: int) -> Bool[Array, "#N #G 1 #T S"]:
    groups = (1, 1) if mask.shape[0] == 1 else (n, mask.shape[0] // n)
    return mask.reshape(*groups, 1, *mask.shape[1:])
