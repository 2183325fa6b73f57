"""Order, resumption, sharding and padding of batches."""

import itertools
import json

import numpy as np
import pytest

from prefix_jax.data.batches import choose_buckets, eval_batches, train_batches
from prefix_jax.data.tokens import Row
from prefix_jax.errors import InputError

PAD = 99
BUCKETS = (8, 16, 24)


@pytest.fixture(scope="module")
def rows():
    """Row n starts with token n; lengths 1 to 24."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(23):
        length = int(rng.integers(1, 25))
        tokens = np.full(length, number, np.int32)
        made.append(Row(tokens, np.arange(length) >= length // 2))
    return made


def batches(rows, number, **changes):
    given = {"batch_size": 4, "seed": 7, "buckets": BUCKETS, "pad_id": PAD} | changes
    iterator = train_batches(rows, **given)
    return [next(iterator) for _ in range(number)]


def same(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
        for x, y in zip(a, b, strict=True)
    )


def unpad(batch):
    """(tokens, loss_mask) of each row, as lists."""
    return [
        (tokens[mask].tolist(), loss[mask].tolist())
        for tokens, mask, loss in zip(
            batch["tokens"], batch["mask"], batch["loss_mask"], strict=True
        )
    ]


def test_each_epoch_is_a_permutation(rows):
    drawn = [b["tokens"][i, 0] for b in batches(rows, 23) for i in range(4)]
    epochs = [drawn[start : start + 23] for start in range(0, 92, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_of_one_row_are_the_same_stream(rows):
    stream = [row for b in batches(rows, 6) for row in unpad(b)]
    assert [unpad(b)[0] for b in batches(rows, 24, batch_size=1)] == stream


def test_seed_decides(rows):
    assert same(batches(rows, 9), batches(rows, 9))
    assert not same(batches(rows, 9), batches(rows, 9, seed=8))


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 13])
def test_resume_is_exact(rows, stop):
    straight = batches(rows, 20)
    given = {"batch_size": 4, "seed": 7, "buckets": BUCKETS, "pad_id": PAD}
    first = train_batches(rows, **given)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    next(first)
    second = train_batches(rows, **given)
    second.set_state(state)
    assert same([next(second) for _ in range(20 - stop)], straight[stop:])
    first.set_state(state)
    assert same([next(first) for _ in range(3)], straight[stop : stop + 3])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_make_the_batch(rows, count):
    whole = batches(rows, 12)
    shards = [
        batches(rows, 12, process_index=index, process_count=count)
        for index in range(count)
    ]
    for number, batch in enumerate(whole):
        parts = [shard[number] for shard in shards]
        assert all(part["tokens"].shape[0] == 4 // count for part in parts)
        joined = {key: np.concatenate([part[key] for part in parts]) for key in batch}
        assert same([joined], [batch])


def test_padding(rows):
    for batch in batches(rows, 30):
        width = batch["tokens"].shape[1]
        lengths = batch["mask"].sum(1)
        assert width == min(b for b in BUCKETS if b >= lengths.max())
        assert batch["tokens"].dtype == np.int32
        assert batch["mask"].dtype == batch["loss_mask"].dtype == bool
        right_padded = np.arange(width) < lengths[:, None]
        assert np.array_equal(batch["mask"], right_padded)
        assert (batch["tokens"][~batch["mask"]] == PAD).all()
        assert not (batch["loss_mask"] & ~batch["mask"]).any()
        for tokens, loss in unpad(batch):
            row = rows[tokens[0]]
            assert tokens == row.tokens.tolist() and loss == row.loss_mask.tolist()


def test_fewer_rows_than_a_batch(rows):
    (batch,) = batches(rows[:3], 1, batch_size=6)
    assert sorted(batch["tokens"][:, 0]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("number", [0, 1, 4, 23])
def test_evaluation_sees_every_row_once_in_order(rows, number, count):
    given = {"batch_size": 4, "buckets": BUCKETS, "pad_id": PAD}
    shards = [
        list(eval_batches(rows[:number], **given, process_index=i, process_count=count))
        for i in range(count)
    ]
    seen = []
    for parts in zip(*shards, strict=True):
        assert {p["tokens"].shape for p in parts} == {
            (4 // count, parts[0]["tokens"].shape[1])
        }
        seen += [row for part in parts for row in unpad(part)]
    expected = [(r.tokens.tolist(), r.loss_mask.tolist()) for r in rows[:number]]
    assert seen == expected + [([], [])] * (-number % 4)


@pytest.mark.parametrize("count", [1, 2])
def test_prefix_ids_stay_with_their_rows(rows, count):
    given = {"batch_size": 4, "buckets": BUCKETS, "pad_id": PAD}
    ids = list(range(100, 106))
    shards = [
        eval_batches(
            rows[:6], **given, prefix_ids=ids, process_index=i, process_count=count
        )
        for i in range(count)
    ]
    seen = [
        number
        for parts in zip(*shards, strict=True)
        for part in parts
        for number in part["prefix_ids"].tolist()
    ]
    assert seen == [*ids, 0, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buckets": (8, 16)}, "longest row has"),
        ({"buckets": ()}, "longest row has"),
        ({"process_count": 3}, "multiple"),
        ({"process_index": 2, "process_count": 2}, "expected 0 to 1"),
        ({"batch_size": 0}, "positive"),
    ],
)
def test_refusals(rows, changes, words):
    given = {"batch_size": 4, "buckets": BUCKETS, "pad_id": PAD} | changes
    with pytest.raises(InputError, match=words):
        train_batches(rows, **given, seed=1)
    with pytest.raises(InputError, match=words):
        eval_batches(rows, **given)


def test_no_rows():
    with pytest.raises(InputError, match="no rows"):
        train_batches([], batch_size=1, seed=0, buckets=(8,), pad_id=0)
    with pytest.raises(InputError, match="no rows"):
        choose_buckets([])


def expected_width(buckets, lengths, batch_size):
    """Mean padded width over every possible batch, drawn with replacement."""
    widths = [
        min(b for b in buckets if b >= max(batch))
        for batch in itertools.product(lengths, repeat=batch_size)
    ]
    return np.mean(widths)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_buckets_are_the_best(batch_size, most, seed):
    lengths = np.random.default_rng(seed).integers(1, 50, 9).tolist()
    chosen = choose_buckets(lengths, batch_size=batch_size, most=most)
    assert list(chosen) == sorted(set(chosen)) and len(chosen) <= most
    assert all(bucket % 8 == 0 for bucket in chosen) and chosen[-1] >= max(lengths)
    sizes = sorted({-(-length // 8) * 8 for length in lengths})
    best = min(
        expected_width((*some, sizes[-1]), lengths, batch_size)
        for number in range(most)
        for some in itertools.combinations(sizes[:-1], number)
    )
    # f64 sums of up to some thousand terms, in another order where two choices tie.
    assert expected_width(chosen, lengths, batch_size) == pytest.approx(best, rel=1e-12)


def test_buckets_fit_the_room():
    assert choose_buckets([3, 1001], room=1004) == (8, 1004)
    assert choose_buckets([512, 512], room=512) == (512,)
