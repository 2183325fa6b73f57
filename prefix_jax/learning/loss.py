"""The loss on target tokens."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefix_jax.learning.cross_entropy import cross_entropy
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV, of_rows
from prefix_jax.model.segments import segments_with, within_segments

Batch = Mapping[str, Int[Array, "B T"] | Bool[Array, "B T"] | Int[Array, " B"]]
"""tokens i32, mask bool (real tokens), loss_mask bool (tokens to be predicted), each
[B T]; with a bank of prefixes also prefix_ids i32 [B], each row's prefix in it; with
several texts in a row also segments i32 [B T], which of them each token belongs to."""


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
    backbone: Backbone, prefix: KV | None, batch: Batch, *, label_smoothing: float = 0.0
) -> LossSums:
    """Summed loss of the tokens that `loss_mask` marks, given all before them.

    `prefix` is shared by all rows, or a bank of which `prefix_ids` names each row's. An
    infix stands before the token that the first target token is read off, in our rows
    the separator: [source; infix; separator, target], so it has a say in all of them.
    """
    tokens, targets = batch["tokens"], batch["loss_mask"][:, 1:]
    mask, segments = batch["mask"][:, :-1], None
    if "segments" in batch:
        mask, segments = None, batch["segments"][:, :-1]
    after = None
    if prefix is not None and prefix.placement == "infix":
        if segments is None:
            after = jnp.cumsum(targets, axis=-1) > 0
        else:
            after = within_segments(targets.astype(jnp.int32), segments) > 0
    out = backbone.forward(
        tokens[:, :-1],
        prefix=of_rows(prefix, batch.get("prefix_ids"), len(tokens)),
        mask=mask,
        after=after,
        segments=segments,
        finished=False,
    )
    with jax.named_scope("loss"):
        sums = cross_entropy(
            out.hidden,
            backbone.output_head,
            tokens[:, 1:],
            targets.astype(jnp.float32),
            label_smoothing,
            out.finish,
        )
    smoothed, row_nll = cast(tuple[Array, Array], sums)
    nll = smoothed if label_smoothing == 0 else jnp.sum(row_nll)
    return LossSums(nll, smoothed, row_nll)


def divisor(
    batch: Batch,
    normalise: Literal["token", "sentence"],
    total: Callable[[Array], Array] = lambda number: number,
) -> Float[Array, ""]:
    """What the summed loss is divided by: target tokens, or sentences that have any.

    `sentence` is the paper's objective: sum over a sentence, mean over the batch.
    `total` adds up the numbers of all parts of the batch, where this is one of them.
    """
    targets = batch["loss_mask"][..., 1:]
    if normalise == "token":
        number = targets.sum()
    elif "segments" in batch:
        number = segments_with(targets, batch["segments"][..., 1:])
    else:
        number = targets.any(-1).sum()
    return jnp.maximum(total(number), 1).astype(jnp.float32)
