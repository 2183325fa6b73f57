"""The one place that knows attention with a prefix: blocks, masks, softmax."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class KeyBlock(NamedTuple):
    """One stretch of positions that queries look at: prefix, cache or own tokens."""

    keys: Float[Array, "N S H K"]
    values: Float[Array, "N S H K"]
    mask: Bool[Array, "#B #T S"] | None
    """Which keys each query sees; None: all (a prefix)."""


def causal_mask(length: int, mask: Bool[Array, "B T"] | None) -> Bool[Array, "#B T T"]:
    """Every token sees the real tokens up to and including itself."""
    causal = jnp.tril(jnp.ones((length, length), bool))[None]
    return causal if mask is None else causal & mask[:, None, :]


def attend(
    query: Float[Array, "B T H K"],
    blocks: Sequence[KeyBlock],
    scale: Float[Array, ""] | float,
) -> Float[Array, "B T H K"]:
    """Softmax attention of the queries over all blocks, as if they were concatenated.

    Only the scores are concatenated, so a prefix with N = 1 serves every row from one
    copy. Scores and softmax are f32 whatever the inputs are, which is what GPT-2's
    `reorder_and_upcast_attn` asks for.
    """
    scores = []
    for block in blocks:
        with jax.named_scope("scores"):
            if block.keys.shape[0] == 1:
                score = jnp.einsum(
                    "bthk,shk->bhts",
                    query,
                    block.keys[0],
                    preferred_element_type=jnp.float32,
                )
            else:
                score = jnp.einsum(
                    "bthk,bshk->bhts",
                    query,
                    block.keys,
                    preferred_element_type=jnp.float32,
                )
            score = score * scale
            if block.mask is not None:
                score = jnp.where(
                    block.mask[:, None], score, jnp.finfo(jnp.float32).min
                )
            scores.append(score)
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    weights = weights.astype(query.dtype)
    out = jnp.zeros_like(query)
    start = 0
    for block in blocks:
        with jax.named_scope("mix"):
            part = weights[..., start : start + block.keys.shape[1]]
            start += block.keys.shape[1]
            if block.values.shape[0] == 1:
                out += jnp.einsum("bhts,shk->bthk", part, block.values[0])
            else:
                out += jnp.einsum("bhts,bshk->bthk", part, block.values)
    return out
