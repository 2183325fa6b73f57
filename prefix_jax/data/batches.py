"""Batches of one padded shape a bucket, in a seeded order that can be resumed."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Bool, Int, Int32

from prefix_jax.data.tokens import Row
from prefix_jax.errors import InputError

Batch = dict[
    str,
    Int32[np.ndarray, "B T"] | Bool[np.ndarray, "B T"] | Int32[np.ndarray, " B"],
]
"""tokens i32, mask bool (real tokens), loss_mask bool (tokens to be predicted) and
segments i32 (which of its row's texts a token belongs to, from 1 on; 0: padding), each
[B T], padded on the right; where rows have their own prefixes, prefix_ids i32 [B]."""

MULTIPLE = 8
"""Chosen buckets are multiples of this many tokens, so that there are few to try."""


def choose_buckets(
    lengths: Sequence[int],
    *,
    batch_size: int = 1,
    most: int = 4,
    room: int | None = None,
) -> tuple[int, ...]:
    """At most `most` row lengths that pad random batches of these rows the least.

    A batch is padded to its longest row, so what is minimised is the expected bucket of
    the longest of `batch_size` rows drawn at random. Buckets are multiples of 8; the
    last holds the longest row and is at most `room` (positions for text). Each bucket
    is one more compiled program.
    """
    if not len(lengths):
        raise InputError("there are no rows to choose buckets for")
    rounded = -(-np.asarray(lengths) // MULTIPLE) * MULTIPLE
    sizes, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0.0], np.cumsum(counts) / len(rounded)]) ** batch_size
    # cost[j]: the least expected length of batches up to sizes[j - 1], as one bucket
    # ends there; a bucket of sizes i to j - 1 costs its length times its probability.
    cost = np.where(np.arange(len(sizes) + 1) == 0, 0.0, np.inf)
    best_ends: list[np.ndarray] = []
    for _ in range(min(most, len(sizes))):
        candidates = cost[:, None] + (below[None, :] - below[:, None]) * np.append(
            0, sizes
        )
        candidates[np.tril_indices(len(cost))] = np.inf
        candidates[0, 0] = 0.0
        best_ends.append(candidates.argmin(0))
        cost = candidates.min(0)
    buckets = []
    end = len(sizes)
    for starts in reversed(best_ends):
        if end:
            buckets.append(int(sizes[end - 1]))
        end = starts[end]
    buckets[0] = min(buckets[0], room or buckets[0])
    return tuple(reversed(buckets))


def train_batches(
    rows: Sequence[Row],
    *,
    batch_size: int,
    seed: int,
    buckets: Sequence[int],
    pad_id: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Batches of `batch_size` rows for ever, each epoch a new seeded permutation.

    The stream of epochs is cut into batches, so that a batch may hold the end of one
    and the start of the next. Each process gets its `batch_size / process_count` rows
    of every batch, padded to the bucket of the whole batch. `get_state()` (JSON) and
    `set_state()` of the result continue exactly, given the same rows and arguments.
    Everything is computed in the caller's thread. Raises InputError.
    """
    shard = rows_of_process(batch_size, process_index, process_count)
    lengths = _lengths(rows, buckets)
    if not len(rows):
        raise InputError("there are no rows to train on; expected at least one")

    def assemble(numbers: Int[np.ndarray, "_"]) -> Batch:
        width = _bucket(int(lengths[numbers].max()), buckets)
        return _pad([rows[number] for number in numbers[shard]], width, pad_id)

    order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
    # An endless stream has no remainder; asked for one, grain overflows at single rows.
    batches = order.batch(batch_size, drop_remainder=True).map(assemble)
    # Assembling takes microseconds; threads would not change the order but cost more.
    return iter(batches.to_iter_dataset(grain.ReadOptions(0, 0)))


def eval_batches(
    rows: Sequence[Row],
    *,
    batch_size: int,
    buckets: Sequence[int],
    pad_id: int,
    process_index: int = 0,
    process_count: int = 1,
    prefix_ids: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Every row once, in order; the last batch is filled with rows that are all mask.

    `prefix_ids`: each row's prefix in a bank, for the batch's prefix_ids (0 where it is
    filled). Processes share each batch as in `train_batches`. Raises InputError.
    """
    shard = rows_of_process(batch_size, process_index, process_count)
    lengths = _lengths(rows, buckets)
    empty = Row(np.zeros(0, np.int32), np.zeros(0, bool))

    def assemble(start: int) -> Batch:
        width = _bucket(int(lengths[start : start + batch_size].max()), buckets)
        batch = list(rows[start : start + batch_size])
        batch += [empty] * (batch_size - len(batch))
        padded = _pad(batch[shard], width, pad_id)
        if prefix_ids is not None:
            ids = np.zeros(batch_size, np.int32)
            given = prefix_ids[start : start + batch_size]
            ids[: len(given)] = given
            padded["prefix_ids"] = ids[shard]
        return padded

    return map(assemble, range(0, len(rows), batch_size))


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a batch that belong to this process. Raises InputError."""
    if not 0 <= process_index < process_count:
        raise InputError(
            f"process_index {process_index} of {process_count} processes; "
            f"expected 0 to {process_count - 1}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch size {batch_size} for {process_count} processes; "
            "expected a positive multiple of the number of processes"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _lengths(rows: Sequence[Row], buckets: Sequence[int]) -> Int32[np.ndarray, "N"]:
    """Tokens of each row, all of which must fit a bucket."""
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    longest = lengths.max(initial=0)
    if longest > max(buckets, default=0):
        raise InputError(
            f"the longest row has {longest} tokens, more than any bucket of "
            f"{tuple(buckets)} holds; add a larger one to data.buckets, "
            "or leave it empty"
        )
    return lengths


def _bucket(length: int, buckets: Sequence[int]) -> int:
    return min(bucket for bucket in buckets if bucket >= length)


def _pad(rows: Sequence[Row], width: int, pad_id: int) -> Batch:
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    loss_mask = np.zeros((len(rows), width), bool)
    for number, row in enumerate(rows):
        length = len(row.tokens)
        tokens[number, :length] = row.tokens
        mask[number, :length] = True
        loss_mask[number, :length] = row.loss_mask
    # A mask alone may have holes, for all that a backbone knows: fused kernels, which
    # have no mask of single tokens, could not be used.
    segments = mask.astype(np.int32)
    return {
        "tokens": tokens,
        "mask": mask,
        "loss_mask": loss_mask,
        "segments": segments,
    }
