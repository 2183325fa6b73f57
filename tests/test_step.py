"""The training step: what moves, what does not, and what the compiler made of it."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import each_family
from rounding import STEPS, SUM
from stepping import KEY, OPTIMIZER, ROWS, TOKENS, make_batch, start

from prefix_jax.config import MeshConfig, TrainConfig
from prefix_jax.data.bins import pack
from prefix_jax.data.tokens import Row
from prefix_jax.errors import InputError
from prefix_jax.learning.loss import divisor, loss_sums
from prefix_jax.learning.split import count, merge
from prefix_jax.learning.step import make_eval_step, make_train_step
from prefix_jax.mesh import make_mesh


def run(
    backbone,
    steps=4,
    method="prefix",
    mesh=None,
    prefix=None,
    parallel="jit",
    **train,
):
    state, frozen = start(backbone, method, **(prefix or {}))
    config = TrainConfig(batch_size=ROWS, **train)
    step = make_train_step(OPTIMIZER, config, mesh, parallel)
    losses = []
    for number in range(steps):
        state, metrics = step(state, frozen, make_batch(number))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(backbone, parallel):
    mesh = make_mesh(MeshConfig(data=2), batch_size=ROWS)
    state, frozen = start(backbone)
    step = make_train_step(OPTIMIZER, TrainConfig(batch_size=ROWS), mesh, parallel)
    state, metrics = step(state, frozen, make_batch())
    assert metrics["skipped"] == 0
    before = jax.tree.map(np.array, (state.trainable, state.opt_state))
    broken = jax.tree.map(lambda x: x * jnp.nan, frozen)
    state, metrics = step(state, broken, make_batch(1))
    assert metrics["skipped"] == 1 and int(state.step) == 2
    chex.assert_trees_all_equal((state.trainable, state.opt_state), before)
    state, metrics = step(state, frozen, make_batch(2))
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])


@each_family
@pytest.mark.parametrize("method", ["prefix", "top2", "full"])
def test_training_lowers_the_loss(backbone, method):
    state, frozen = start(backbone, method)
    step = make_train_step(OPTIMIZER, TrainConfig(batch_size=ROWS))
    losses = []
    for _ in range(20):
        state, metrics = step(state, frozen, make_batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1


@each_family
def test_backbone_bytes_stay_the_same(backbone):
    """Law 6."""
    state, frozen = start(backbone)
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(frozen)]
    step = make_train_step(OPTIMIZER, TrainConfig(batch_size=ROWS))
    for number in range(3):
        state, _ = step(state, frozen, make_batch(number))
    assert before == [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(frozen)]
    whole = merge(state.trainable, frozen)["backbone"]
    chex.assert_trees_all_equal(whole, backbone)


def _compiled(backbone, method):
    state, frozen = start(backbone, method)
    step = make_train_step(OPTIMIZER, TrainConfig(batch_size=ROWS))
    return step.lower(state, frozen, make_batch()).compile(), state, frozen


@each_family
def test_compiled_step_has_no_gradient_of_the_backbone(backbone):
    """Law 6 on the program: nothing of a weight's shape is ever computed.

    The stacked weights [L, ...] and the tables enter the program as parameters, are
    passed into loops, and at most laid out anew. A gradient of one would be another
    array of its shape, as there is for every one of them in full fine-tuning: written
    layer by layer (`dynamic-update-slice`) in the backward loop, or added up.
    """
    weights = {
        ",".join(map(str, leaf.shape))
        for leaf in jax.tree.leaves(backbone)
        if leaf.ndim > 1 + (leaf.shape[0] == backbone.config.n_layer)
    }

    def computed(compiled):
        """Operations that give an array of a weight's shape, by shape."""
        found = re.findall(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(", compiled.as_text())
        passed_on = {"parameter", "get-tuple-element", "copy", "transpose", "bitcast"}
        return {
            shape: {name for dims, name in found if dims == shape} - passed_on
            for shape in weights
        }

    prefix, state, frozen = _compiled(backbone, "prefix")
    full, *_ = _compiled(backbone, "full")
    gradients = computed(full)  # shows that the check can fail
    assert all(gradients.values())
    assert not any(computed(prefix).values())
    # Everything that leaves the program: state, moments and four metrics.
    out = jax.tree.leaves(prefix.out_info)
    small = count(state.trainable)
    assert sum(int(np.prod(leaf.shape)) for leaf in out) <= 3 * small + 10
    assert count(frozen) > 10 * small


def test_state_is_donated_and_the_backbone_is_not(backbone):
    state, frozen = start(backbone)
    step = make_train_step(OPTIMIZER, TrainConfig(batch_size=ROWS))
    step(state, frozen, make_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    assert not KEY.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize("kind", ["flat", "mlp"])
def test_same_seed_same_bits(backbone, kind):
    settings = {"prefix": {"kind": kind, "dropout": 0.2}}
    first, losses = run(backbone, **settings)
    second, again = run(backbone, **settings)
    assert losses == again
    chex.assert_trees_all_equal(first.trainable, second.trainable)


@pytest.mark.parametrize(
    ("normalise", "prefix"),
    [("token", {}), ("sentence", {"dropout": 0.5, "nested": (2,)})],
)
def test_accumulated_equals_whole(backbone, normalise, prefix):
    """Law 7: 4 micro-batches of 2 rows are one batch of 8, what is drawn included."""
    settings = {"normalise": normalise, "prefix": prefix}
    one, losses = run(backbone, **settings)
    four, again = run(backbone, **settings, accumulate=4)
    np.testing.assert_allclose(losses, again, **SUM)
    chex.assert_trees_all_close(one.trainable, four.trainable, **STEPS)


def test_mesh_of_one_equals_no_mesh(backbone):
    plain, _ = run(backbone)
    meshed, _ = run(backbone, mesh=make_mesh(MeshConfig(data=1)))
    chex.assert_trees_all_close(plain.trainable, meshed.trainable, **STEPS)


def test_loss_is_that_of_the_target_tokens_only(backbone):
    """Against a loss written out in numpy, from the logits."""
    batch = jax.tree.map(jnp.asarray, make_batch())
    logits = np.asarray(jax.jit(backbone.__call__)(batch["tokens"]), np.float64)
    expected = 0.0
    for row in range(ROWS):
        for t in range(1, TOKENS):
            if batch["loss_mask"][row, t]:
                z = logits[row, t - 1]
                expected += np.log(np.exp(z - z.max()).sum()) + z.max()
                expected -= z[batch["tokens"][row, t]]
    sums = loss_sums(backbone, None, batch)
    np.testing.assert_allclose(sums.nll, expected, **SUM)
    assert divisor(batch, "token") == batch["loss_mask"][:, 1:].sum()
    assert divisor(batch, "sentence") == ROWS


def test_label_smoothing_against_optax(backbone):

    batch = jax.tree.map(jnp.asarray, make_batch())
    logits = jax.jit(backbone.__call__)(batch["tokens"])[:, :-1]
    labels = optax.smooth_labels(jax.nn.one_hot(batch["tokens"][:, 1:], 300), 0.1)
    expected = optax.softmax_cross_entropy(logits, labels)
    expected = jnp.sum(expected * batch["loss_mask"][:, 1:])
    sums = loss_sums(backbone, None, batch, label_smoothing=0.1)
    np.testing.assert_allclose(sums.smoothed, expected, **SUM)


def test_empty_rows_change_nothing(backbone):
    """A batch filled up with rows of padding has the loss of its real rows."""
    batch = jax.tree.map(jnp.asarray, make_batch())
    filled = {
        name: np.concatenate([array, np.zeros_like(array)])
        for name, array in batch.items()
    }
    evaluate = make_eval_step()
    small, large = evaluate(backbone, None, batch), evaluate(backbone, None, filled)
    np.testing.assert_allclose(small["nll"], large["nll"], **SUM)
    assert small["tokens"] == large["tokens"]


@pytest.fixture
def eight():
    return make_mesh(MeshConfig(data=8))  # conftest.py asks jax for eight


@each_family
def test_eight_devices_equal_one(backbone, eight):
    """Law 7, to f32 rounding: the order of the sums differs."""
    one, losses = run(backbone)
    many, again = run(backbone, mesh=eight)
    np.testing.assert_allclose(losses, again, **SUM)
    chex.assert_trees_all_close(one.trainable, many.trainable, **STEPS)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_layers_in_stacks_of_their_own_train_alike(backbone, parallel):
    """On devices of which each finishes the last layer for its own target tokens."""
    alone = backbone.parted(*[1] * backbone.config.n_layer)
    mesh = make_mesh(MeshConfig(data=4))
    one, losses = run(backbone)
    other, again = run(alone, mesh=mesh, parallel=parallel)
    np.testing.assert_allclose(losses, again, **SUM)
    trained = one.trainable["prefix"], other.trainable["prefix"]
    chex.assert_trees_all_close(*trained, **STEPS)


@each_family
def test_the_last_mlp_is_not_for_all_tokens(backbone, monkeypatch):
    monkeypatch.setattr("prefix_jax.learning.cross_entropy.FULL_PRODUCT", 1)
    width = backbone.blocks[0].down.kernel.shape[1]

    def products(*sizes):
        """Those that give the gradient of an MLP's inner states of all tokens, and the
        states themselves where there is one product for them."""
        text = _compiled(backbone.parted(*sizes), "prefix")[0].as_text()
        rows = ROWS * (TOKENS - 1)
        return len(re.findall(rf"f32\[{rows},{width}\]\S* dot\(", text))

    assert products(1, 2) == 2 * products(2, 1) > 0


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "normalise": "sentence"}])
def test_pmap_equals_jit(backbone, settings):
    """Law 7, to f32 rounding."""
    mesh = make_mesh(MeshConfig(data=4))
    one, losses = run(backbone, **settings)
    many, again = run(backbone, mesh=mesh, parallel="pmap", **settings)
    np.testing.assert_allclose(losses, again, **SUM)
    chex.assert_trees_all_close(one.trainable, many.trainable, **STEPS)


def test_pmap_equals_jit_on_packed_rows(backbone):
    """With dropout, several texts in a row, and texts that have no target."""
    random = np.random.default_rng(0)
    texts = [
        Row(random.integers(0, 300, 6).astype(np.int32), np.arange(6) > first)
        for first in (2, 3, 9, 1, 0, 9, 4, 2)
    ]
    batch = pack([texts[i : i + 2] for i in range(0, 8, 2)], TOKENS, 0)
    train = TrainConfig(batch_size=4, normalise="sentence")
    found = []
    for parallel in ("jit", "pmap"):
        state, frozen = start(backbone, dropout=0.3)
        mesh = make_mesh(MeshConfig(data=4))
        step = make_train_step(OPTIMIZER, train, mesh, parallel)
        state, metrics = step(state, frozen, batch)
        found.append((state.trainable, metrics["objective"]))
    np.testing.assert_allclose(found[0][1], found[1][1], **SUM)
    chex.assert_trees_all_close(found[0][0], found[1][0], **STEPS)


def test_pmap_refuses_rows_that_it_cannot_deal_out(backbone):
    state, frozen = start(backbone)
    train = TrainConfig(batch_size=ROWS, accumulate=4)
    mesh = make_mesh(MeshConfig(data=4))
    step = make_train_step(OPTIMIZER, train, mesh, "pmap")
    with pytest.raises(InputError, match="8 rows cannot be dealt out to 4 devices"):
        step(state, frozen, make_batch())


def test_pmap_without_a_mesh_is_refused():
    with pytest.raises(InputError, match="needs a mesh"):
        make_train_step(OPTIMIZER, parallel="pmap")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("normalise", ["token", "sentence"])
def test_collectives_are_no_larger_than_the_prefix(backbone, eight, dtype, normalise):
    """Law 6, sharded by data; the gradient is all-reduced in f32 (section 4)."""
    narrow = jax.tree.map(lambda x: x.astype(dtype), backbone)
    narrow.dtype = jnp.dtype(dtype)
    state, frozen = start(narrow)
    config = TrainConfig(batch_size=ROWS, normalise=normalise)
    step = make_train_step(OPTIMIZER, config, eight)
    batch = make_batch()
    batch["segments"] = batch["mask"].astype(np.int32)
    text = step.lower(state, frozen, batch).compile().as_text()
    largest = max(leaf.size for leaf in jax.tree.leaves(state.trainable))
    reduced = []
    for line in text.splitlines():
        if not re.search(r"(all-reduce|all-gather|all-to-all|reduce-scatter)\(", line):
            continue
        assert "all-reduce(" in line, line
        # The result is one array or a tuple of them: everything before the operation.
        for kind, dims in re.findall(
            r"(\w+)\[([\d,]*)\]", line.split("all-reduce(")[0]
        ):
            size = int(np.prod([int(d) for d in dims.split(",") if d]))
            reduced.append((kind, size))
    assert reduced, "a data-parallel step must reduce its gradient"
    assert max(size for _, size in reduced) <= largest
    assert {kind for kind, size in reduced if size > 1} == {"f32"}
