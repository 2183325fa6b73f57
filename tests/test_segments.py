"""Law 5: packed equals padded, for every kind of prefix, in loss and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import each_family
from kinds import KINDS, make, opened
from rounding import GRADIENTS, LOGITS, SUM

from prefix_jax.data.batches import eval_batches
from prefix_jax.data.bins import pack
from prefix_jax.data.tokens import Row
from prefix_jax.learning.loss import divisor, loss_sums
from prefix_jax.model.segments import segment_starts, within_segments

LENGTHS = [(5, 7, 4), (9, 6), (3,)]
ROOM = 18


@pytest.fixture(scope="module")
def packed():
    """Texts of several rows, as lists."""
    random = np.random.default_rng(0)
    return [
        [
            Row(
                random.integers(0, 300, length).astype(np.int32),
                np.arange(length) > (length // 2 if length != 6 else length),
            )
            for length in lengths
        ]
        for lengths in LENGTHS
    ]


@pytest.fixture(scope="module")
def both(packed):
    """The same texts as one packed batch, and as one padded batch."""
    rows = [row for texts in packed for row in texts]
    [padded] = eval_batches(rows, batch_size=len(rows), buckets=(ROOM,), pad_id=0)
    # Without its own segments, of which each row has one: those are packed rows, too.
    assert (padded.pop("segments") == padded["mask"]).all()
    return jax.tree.map(jnp.asarray, (pack(packed, ROOM, 0), padded))


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_packed_equals_padded(backbone, both, kind):
    """Loss and the gradient of the prefix, to f32 rounding."""
    prefix = None if kind is None else opened(make(backbone, **KINDS[kind]))

    @jax.jit
    @jax.value_and_grad
    def loss(prefix, batch):
        kv = prefix and prefix.fold(backbone, key=jax.random.key(0))
        return loss_sums(backbone, kv, batch, label_smoothing=0.1).smoothed

    (one, grad), (other, again) = (loss(prefix, batch) for batch in both)
    np.testing.assert_allclose(one, other, **SUM)
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, **GRADIENTS)


@each_family
def test_gradient_of_the_backbone_is_the_same(backbone, both):
    @jax.jit
    @jax.grad
    def gradient(backbone, batch):
        return loss_sums(backbone, None, batch).nll

    one, other = (gradient(backbone, batch) for batch in both)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **GRADIENTS)
    # With layers in stacks of their own the last one is finished for targets only.
    alone = backbone.parted(1, 1, 1)
    alone.remat = True
    again = gradient(alone, both[0]).parted(3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, **GRADIENTS)


@each_family
def test_texts_do_not_see_each_other(backbone, both):
    """By gradient: no token moves the logits of another text."""
    batch = both[0]
    embedded = backbone.token_embedding[...][batch["tokens"]]
    segments = batch["segments"]

    @jax.jit
    @jax.grad
    def moves(embedded):
        hidden = backbone.forward(embedded, segments=segments).hidden
        return (hidden[0] * (segments[0] == 2)[:, None]).sum()

    moved = np.abs(moves(embedded)).sum(-1) > 0
    assert moved[0, segments[0] == 2].any()
    assert not moved[0, segments[0] != 2].any() and not moved[1:].any()


@pytest.mark.parametrize("normalise", ["token", "sentence"])
def test_divisors_are_the_same(both, normalise):
    one, other = (divisor(batch, normalise) for batch in both)
    assert one == other


def test_running_sums_begin_anew():
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 3, 3]])
    starts = [[0, 0, 2, 2, 2, 5], [0, 1, 1, 3, 3, 3]]
    np.testing.assert_array_equal(segment_starts(segments), starts)
    ones = jnp.ones_like(segments)
    expected = [[1, 2, 1, 2, 3, 1], [1, 1, 2, 1, 2, 3]]
    np.testing.assert_array_equal(within_segments(ones, segments), expected)


def test_segments_take_the_place_of_mask(backbone, both):
    batch = both[0]
    with pytest.raises(ValueError, match="place of mask"):
        backbone.forward(
            batch["tokens"], mask=batch["mask"], segments=batch["segments"]
        )


def test_rows_may_exceed_the_table(backbone):
    """Positions are those of each text."""
    most = backbone.config.n_positions
    random = np.random.default_rng(1)
    tokens = jnp.asarray(random.integers(0, 300, (1, 3 * most), dtype=np.int32))
    segments = jnp.repeat(jnp.array([[1, 2, 3]]), most, axis=1)
    packed = backbone(tokens, segments=segments)
    alone = backbone(tokens.reshape(3, most))
    np.testing.assert_allclose(packed.reshape(alone.shape), alone, **LOGITS)
