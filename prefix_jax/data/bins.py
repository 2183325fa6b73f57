"""Batches of packed rows: several short rows in each, hardly any padding.

Rows of some length class always go to the same places of the same packed rows, but
which of them goes where is drawn anew in each epoch. So an epoch holds every row once,
has the same number of packed rows each time, and can be entered anywhere.
"""

import bisect
import functools
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from prefix_jax.data.batches import Batch, rows_of_process
from prefix_jax.data.tokens import Row
from prefix_jax.errors import InputError


class Bins:
    """Which rows share a packed row of `room` tokens, for each epoch."""

    def __init__(self, lengths: Int[np.ndarray, " rows"], room: int, seed: int):
        """`lengths` of the rows; raises InputError where one exceeds `room`."""
        if not len(lengths):
            raise InputError("there are no rows to train on; expected at least one")
        if lengths.max() > room:
            raise InputError(
                f"the longest row has {lengths.max()} tokens, more than the {room} of "
                f"a packed row; raise data.pack to {lengths.max()} or more, or lower "
                "data.max_length"
            )
        self.room = room
        self._lengths, self._seed = lengths, seed
        # Places, from the longest row's to the shortest's, in the order of their bins.
        bins = _best_fit(np.sort(lengths)[::-1], room)
        self._places = np.argsort(bins, kind="stable")
        self._ends = np.cumsum(np.bincount(bins))
        self.fill = float(lengths.sum() / (len(self) * room))
        """The share of the packed rows' tokens that are not padding."""
        self._order = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return len(self._ends)

    def __str__(self) -> str:
        each = len(self._lengths) / len(self)
        return (
            f"{len(self):,} packed rows of {self.room} tokens, {self.fill:.1%} full, "
            f"{each:.1f} examples in each"
        )

    def rows(self, epoch: int, number: int) -> Int[np.ndarray, "_"]:
        """Numbers of the rows in one packed row of an epoch."""
        start = self._ends[number - 1] if number else 0
        return self._order(epoch)[self._places[start : self._ends[number]]]

    def _draw(self, epoch: int) -> Int[np.ndarray, " rows"]:
        """Row numbers from the longest to the shortest, equally long ones shuffled."""
        drawn = np.random.default_rng((self._seed, epoch)).permutation(
            len(self._lengths)
        )
        return drawn[np.argsort(-self._lengths[drawn], kind="stable")]


def _best_fit(lengths: Int[np.ndarray, " rows"], room: int) -> Int[np.ndarray, " rows"]:
    """The bin of each length, longest first: the fullest one that has room for it."""
    bins = np.zeros(len(lengths), np.int64)
    open_bins: dict[int, list[int]] = {}  # by the room that they have left
    lefts: list[int] = []  # its keys, sorted
    number = 0
    for place, length in enumerate(lengths.tolist()):
        at = bisect.bisect_left(lefts, length)
        if at < len(lefts):
            left = lefts[at]
            bins[place] = open_bins[left].pop()
            if not open_bins[left]:
                del open_bins[left], lefts[at]
        else:
            left, bins[place] = room, number
            number += 1
        if left - length not in open_bins:
            open_bins[left - length] = []
            bisect.insort(lefts, left - length)
        open_bins[left - length].append(int(bins[place]))
    return bins


def packed_batches(
    rows: Sequence[Row],
    bins: Bins,
    *,
    batch_size: int,
    seed: int,
    pad_id: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """As `train_batches`, of `batch_size` packed rows: the `bins` of `rows`."""
    mine = rows_of_process(batch_size, process_index, process_count)

    def assemble(chosen: Int[np.ndarray, "all 2"]) -> Batch:
        packed = [
            [rows[row] for row in bins.rows(int(epoch), int(number))]
            for epoch, number in chosen[mine]
        ]
        return pack(packed, bins.room, pad_id)

    order = grain.MapDataset.range(len(bins)).seed(seed).shuffle().repeat()
    chosen = order.map_with_index(lambda i, number: np.array([i // len(bins), number]))
    batches = chosen.batch(batch_size, drop_remainder=True).map(assemble)
    return iter(batches.to_iter_dataset(grain.ReadOptions(0, 0)))


def pack(packed: Sequence[Sequence[Row]], length: int, pad_id: int) -> Batch:
    """Rows of `length` tokens, each holding some shorter ones."""
    shape = len(packed), length
    tokens = np.full(shape, pad_id, np.int32)
    loss_mask = np.zeros(shape, bool)
    segments = np.zeros(shape, np.int32)
    for number, rows in enumerate(packed):
        start = 0
        for segment, row in enumerate(rows, start=1):
            stop = start + len(row.tokens)
            tokens[number, start:stop] = row.tokens
            # Nothing of its own text stands before the first token to predict it from.
            loss_mask[number, start + 1 : stop] = row.loss_mask[1:]
            segments[number, start:stop] = segment
            start = stop
    return {
        "tokens": tokens,
        "mask": segments > 0,
        "loss_mask": loss_mask,
        "segments": segments,
    }
