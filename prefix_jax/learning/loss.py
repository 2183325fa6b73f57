"""The loss on target tokens."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefix_jax.learning.cross_entropy import cross_entropy
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV

Batch = Mapping[str, Int[Array, "B T"] | Bool[Array, "B T"] | Int[Array, " B"]]
"""tokens i32, mask bool (real tokens), loss_mask bool (tokens to be predicted), each
[B T]; with a bank of prefixes also prefix_ids i32 [B], each row's prefix in it."""


class LossSums(NamedTuple):
    """Sums over a batch, so that micro-batches and devices add up exactly."""

    nll: Float[Array, ""]
    """Negative log-likelihood of the target tokens, nats."""
    smoothed: Float[Array, ""]
    """The same with label smoothing: what training minimises. Take gradients of this:
    with label smoothing, the other sums have none."""
    row_nll: Float[Array, " B"]
    """`nll` of each row, for reading: it has no gradient."""


def loss_sums(
    backbone: GPT2, prefix: KV | None, batch: Batch, *, label_smoothing: float = 0.0
) -> LossSums:
    """Summed loss of the tokens that `loss_mask` marks, given all before them.

    `prefix` is shared by all rows, or a bank of which `prefix_ids` names each row's. An
    infix stands before the token that the first target token is read off, in our rows
    the separator: [source; infix; separator, target], so it has a say in all of them.
    """
    after = None
    if prefix is not None and prefix.placement == "infix":
        after = jnp.cumsum(batch["loss_mask"][:, 1:], axis=-1) > 0
    hidden = backbone.hidden_states(
        batch["tokens"][:, :-1],
        prefix,
        batch["mask"][:, :-1],
        prefix_ids=batch.get("prefix_ids"),
        after=after,
    )
    with jax.named_scope("loss"):
        sums = cross_entropy(
            hidden,
            backbone.output_head,
            batch["tokens"][:, 1:],
            batch["loss_mask"][:, 1:].astype(jnp.float32),
            label_smoothing,
        )
    smoothed, row_nll = cast(tuple[Array, Array], sums)
    nll = smoothed if label_smoothing == 0 else jnp.sum(row_nll)
    return LossSums(nll, smoothed, row_nll)


def divisor(batch: Batch, normalise: Literal["token", "sentence"]) -> Float[Array, ""]:
    """What the summed loss is divided by: target tokens, or sentences that have any.

    `sentence` is the paper's objective: sum over a sentence, mean over the batch.
    """
    targets = batch["loss_mask"][..., 1:]
    number = targets.sum() if normalise == "token" else targets.any(-1).sum()
    return jnp.maximum(number, 1).astype(jnp.float32)
