"""Target tokens in chunks: the same loss and gradients as from the logits of all."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

from prefix_jax.learning.cross_entropy import _chunked, cross_entropy
from prefix_jax.model.passes import Finish

B, T, D, V = 3, 40, 8, 50


def make(share: float, seed: int = 0):
    """Hidden states, head, labels, and weights of which `share` are not 0."""
    random = np.random.default_rng(seed)
    weights = random.uniform(0.5, 2, (B, T)) * (random.uniform(size=(B, T)) < share)
    arrays = random.normal(size=(B, T, D)), random.normal(size=(V, D)), weights
    hidden, head, weights = (jnp.asarray(x, jnp.float32) for x in arrays)
    return hidden, head, jnp.asarray(random.integers(0, V, (B, T))), weights


def whole(hidden, head, labels, weights, smoothing):
    """From the logits of all tokens, by optax."""
    logits = jnp.einsum("btd,vd->btv", hidden, head)
    wanted = optax.smooth_labels(jax.nn.one_hot(labels, V), smoothing)
    return jnp.sum(weights * optax.softmax_cross_entropy(logits, wanted))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """16 of the 120 tokens at a time, or 8, or 4."""
    monkeypatch.setattr("prefix_jax.learning.cross_entropy.FULL_PRODUCT", 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equals_the_loss_of_all_logits(share, smoothing):
    inputs = make(share)

    def ours(hidden, head):
        objective, nll = cross_entropy(hidden, head, *inputs[2:], smoothing)
        return 3 * objective, nll

    def theirs(hidden, head):
        return 3 * whole(hidden, head, *inputs[2:], smoothing)

    (value, nll), found = jax.value_and_grad(ours, (0, 1), has_aux=True)(*inputs[:2])
    expected, gradients = jax.value_and_grad(theirs, (0, 1))(*inputs[:2])
    # Sums of 120 terms of some 10 nats, rounded to 24 bits in another order.
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(nll.sum(), whole(*inputs, 0.0), rtol=1e-6)
    for ours_, theirs_ in zip(found, gradients, strict=True):
        np.testing.assert_allclose(ours_, theirs_, rtol=1e-5, atol=2e-5)
    # Without a gradient the same numbers come from a program of their own.
    plain = cross_entropy(*inputs, smoothing)
    np.testing.assert_allclose(plain[0] * 3, value, rtol=1e-6)
    np.testing.assert_allclose(plain[1], nll, rtol=1e-6)


def test_what_makes_the_hidden_states_is_done_to_targets_only():
    """Values and all gradients are those of doing it to every token first."""
    hidden, head, labels, weights = make(0.3)
    random = np.random.default_rng(1)
    up, down = (
        jnp.asarray(random.normal(size=x), jnp.float32) for x in [(D, 9), (9, D)]
    )
    inputs = hidden, head, up, down, jnp.float32(2)
    seen = []

    def ours(hidden, head, *parameters):
        finish = make_finish(*parameters, seen)
        return cross_entropy(hidden, head, labels, weights, 0.1, finish)[0]

    def theirs(hidden, head, *parameters):
        hidden = make_finish(*parameters)(hidden)
        return whole(hidden, head, labels, weights, 0.1)

    for arguments in [(0,), (0, 3), (4,), (0, 1, 2, 3, 4)]:
        found = jax.value_and_grad(ours, arguments)(*inputs)
        expected = jax.value_and_grad(theirs, arguments)(*inputs)
        # Gradients of up to 1,000, sums of products with another order (2e-7 seen).
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(ours(*inputs), found[0], rtol=1e-6)
    assert seen and max(rows * tokens for rows, tokens, _ in seen) == 16


def make_finish(up, down, factor, seen=None):
    """An MLP and a norm's like; the shapes that are given to it are `seen`."""

    def mlp(up, down, x):
        if seen is not None:
            seen.append(x.shape)
        return jnp.tanh(x @ up) @ down

    return Finish(Partial(mlp, up, down), Scaled(factor))


class Scaled(nnx.Module):
    def __init__(self, factor):
        self.factor = nnx.Param(factor)

    def __call__(self, x):
        return self.factor[...] * x


def test_rows_have_their_own_sums():
    hidden, head, labels, weights = make(0.5)
    _, nll = cross_entropy(hidden, head, labels, weights, 0.0)
    for row in range(B):
        one = slice(row, row + 1)
        expected = whole(hidden[one], head, labels[one], weights[one], 0.0)
        np.testing.assert_allclose(nll[row], expected, rtol=1e-6)


def test_what_is_not_asked_for_is_not_made():
    """Logits of all tokens, and the gradient of a head that is frozen."""
    hidden, head, labels, weights = make(0.5)

    def loss(hidden, head):
        return cross_entropy(hidden, head, labels, weights, 0.0)[0]

    def program(argument):
        return jax.jit(jax.grad(loss, argument)).lower(hidden, head).as_text()

    def sums_head(text):
        return re.search(rf"dot_general.*-> tensor<{V}x{D}xf32>", text) is not None

    assert sums_head(program(1))
    assert not sums_head(program(0))
    assert f"tensor<1x16x{V}xf32>" in program(0)
    assert f"tensor<1x{B * T}x{V}xf32>" not in program(0) + program(1)


def test_only_the_sum_has_a_gradient():
    inputs = make(0.5)

    def rows(hidden):
        return cross_entropy(hidden, *inputs[1:], 0.0)[1].sum()

    assert not jax.grad(rows)(inputs[0]).any()


def test_on_devices_that_each_have_some_rows():
    """Inside `shard_map` the loop's sums differ between devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("data",))
    rows, whole_ = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def loss(hidden, head, labels, weights):
        return jax.lax.psum(
            cross_entropy(hidden, head, labels, weights, 0.0, finish)[0], "data"
        )

    def sharded(*inputs):
        specs = (rows, whole_, rows, rows)
        return jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=whole_)(*inputs)

    inputs = list(make(0.5))
    inputs[3] = inputs[3].at[1].set(0)  # no targets: this device's loop ends first
    finish = make_finish(jnp.ones((D, 2)) / 3, jnp.ones((2, D)) / 4, jnp.float32(2))
    expected = jax.value_and_grad(lambda x: whole(finish(x), *inputs[1:], 0.0))(
        inputs[0]
    )
    found = jax.value_and_grad(lambda x: sharded(x, *inputs[1:]))(inputs[0])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=2e-5)


def test_a_long_row_fills_chunks_of_its_own():
    """And those of the others not with padding: 40 of 120 tokens are 16 + 16 + 8."""
    hidden, _, labels, _ = make(1.0)
    weights = jnp.zeros((B, T)).at[1].set(1.0)
    assert sizes_of(hidden, labels, weights) == [16, 16, 8]


@pytest.mark.parametrize(
    ("targets", "sizes"),
    [
        (0, []),
        (1, [4]),
        (4, [4]),
        (5, [8]),
        (9, [16]),
        (13, [16]),
        (17, [16, 4]),
        (29, [16, 16]),
        (105, [16] * 7),
        (117, [16] * 7 + [8]),
        (120, [16] * 7 + [8]),
    ],
)
def test_each_target_is_counted_once(targets, sizes):
    """In whole chunks and one more, or a half or a quarter, whose end is padding."""
    hidden, head, labels, _ = make(1.0)
    weights = (jnp.arange(B * T) < targets).astype(jnp.float32).reshape(B, T)
    assert sizes_of(hidden, labels, weights) == sizes

    def ours(hidden, head):
        return cross_entropy(hidden, head, labels, weights, 0.0)[0]

    def theirs(hidden, head):
        return whole(hidden, head, labels, weights, 0.0)

    found = jax.value_and_grad(ours, (0, 1))(hidden, head)
    expected = jax.value_and_grad(theirs, (0, 1))(hidden, head)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=2e-5)


def sizes_of(hidden, labels, weights) -> list[int]:
    """Of the chunks that are gone through, each with what the others have not."""
    chunks, sizes, places = _chunked(hidden, labels, weights), [], []

    def add(chunk, carry):
        sizes.append(chunk.weights.size)
        places.append(int(chunk.first))
        return carry

    with jax.disable_jit():
        chunks.loop(add, 0)
    assert places == [sum(sizes[:number]) for number in range(len(sizes))]
    return sizes


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)])
def test_no_tokens_have_no_loss(shape):
    hidden, labels = jnp.zeros((*shape, D)), jnp.zeros(shape, int)
    objective, nll = cross_entropy(hidden, jnp.ones((V, D)), labels, labels * 1.0, 0.0)
    assert objective == 0 and nll.shape == shape[:1] and not nll.any()


def test_the_scale_of_the_loss_is_not_rounded_to_bf16():
    hidden, *rest = make(0.5)
    hidden = hidden.astype(jnp.bfloat16)

    def gradient(scale):
        return jax.grad(lambda x: scale * cross_entropy(x, *rest, 0.0)[0])(hidden)

    # 4/3 is a third of 4 exactly, but bf16 knows it to 3 digits only.
    third, four = gradient(jnp.float32(4 / 3)), gradient(4.0).astype(jnp.float32)
    expected = (four / 3).astype(jnp.bfloat16)
    np.testing.assert_array_equal(third, expected)
