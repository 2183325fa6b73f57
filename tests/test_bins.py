"""Packed rows: every row once an epoch, hardly any padding, resumed exactly."""

import itertools
import json

import numpy as np
import pytest

from prefix_jax.data.bins import Bins, pack, packed_batches
from prefix_jax.data.tokens import Row
from prefix_jax.errors import InputError

PAD, ROOM = 999, 32


@pytest.fixture(scope="module")
def rows():
    """Row n is n times over; lengths 1 to 24."""
    lengths = np.random.default_rng(0).integers(1, 25, 90)
    return [
        Row(np.full(length, number, np.int32), np.arange(length) >= length // 2)
        for number, length in enumerate(lengths)
    ]


def lengths_of(rows):
    return np.array([len(row.tokens) for row in rows])


def iterate(rows, **changes):
    given = {"batch_size": 4, "seed": 7, "pad_id": PAD} | changes
    return packed_batches(rows, Bins(lengths_of(rows), ROOM, given["seed"]), **given)


def texts(batch):
    """Row number and loss mask of each text in a batch."""
    found = []
    for tokens, loss, segments in zip(
        batch["tokens"], batch["loss_mask"], batch["segments"], strict=True
    ):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            [number] = set(tokens[here].tolist())
            found.append((number, loss[here].tolist()))
    return found


def test_each_epoch_holds_every_row_once(rows):
    bins = Bins(lengths_of(rows), ROOM, seed=3)
    for epoch in range(3):
        held = [bins.rows(epoch, number) for number in range(len(bins))]
        assert sorted(np.concatenate(held)) == list(range(len(rows)))
        assert all(lengths_of(rows)[one].sum() <= ROOM for one in held)


def test_epochs_pair_rows_differently(rows):
    bins = Bins(lengths_of(rows), ROOM, seed=3)
    company = [
        {frozenset(bins.rows(epoch, n).tolist()) for n in range(len(bins))}
        for epoch in range(3)
    ]
    assert len(company[0] & company[1]) < len(bins) / 3
    assert bins.rows(0, 5).tolist() == bins.rows(0, 5).tolist()
    other = Bins(lengths_of(rows), ROOM, seed=4)
    assert any(
        bins.rows(0, n).tolist() != other.rows(0, n).tolist() for n in range(len(bins))
    )


def test_batches_hold_the_rows(rows):
    """Two epochs of batches, texts whole and beside each other, padding marked."""
    bins = Bins(lengths_of(rows), ROOM, seed=7)
    number = -(-2 * len(bins) // 4)
    drawn = []
    for batch in itertools.islice(iterate(rows), number):
        assert batch["tokens"].shape == (4, ROOM)
        assert (batch["mask"] == (batch["segments"] > 0)).all()
        assert (batch["tokens"][~batch["mask"]] == PAD).all()
        assert not batch["loss_mask"][~batch["mask"]].any()
        drawn += texts(batch)
    times = np.bincount([n for n, _ in drawn], minlength=len(rows))
    assert (times >= 2).all()
    for row, loss in drawn:
        assert loss == [False, *rows[row].loss_mask[1:]]


def test_little_is_padding():
    """Lengths like those of real examples fill rows of several of them."""
    lengths = np.clip(np.random.default_rng(1).normal(56, 15, 5000), 12, 120)
    bins = Bins(lengths.astype(int), 256, seed=0)
    assert bins.fill > 0.97
    assert f"{bins.fill:.1%} full" in str(bins)
    assert bins.fill == pytest.approx(lengths.astype(int).sum() / (256 * len(bins)))


def test_state_goes_on_exactly(rows):
    whole = [*itertools.islice(iterate(rows), 40)]
    iterator = iterate(rows)
    for _ in range(17):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = iterate(rows)
    resumed.set_state(state)
    for expected, batch in zip(whole[17:], resumed, strict=False):
        for name in expected:
            np.testing.assert_array_equal(expected[name], batch[name])


def test_processes_share_each_batch(rows):
    first, second = (
        iterate(rows, process_index=index, process_count=2) for index in range(2)
    )
    for whole in itertools.islice(iterate(rows), 8):
        one, other = next(first), next(second)
        for name in whole:
            joined = np.concatenate([one[name], other[name]])
            np.testing.assert_array_equal(whole[name], joined)


def test_a_row_without_texts_is_padding():
    batch = pack([[]], 4, PAD)
    assert batch["segments"].sum() == 0 and (batch["tokens"] == PAD).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="longest row has 40 tokens, more than the 32"):
        Bins(np.array([3, 40]), 32, seed=0)
    with pytest.raises(InputError, match="no rows"):
        Bins(np.array([], int), 32, seed=0)
