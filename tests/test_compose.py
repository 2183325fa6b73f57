"""Prefixes made of prefixes: what each composition means."""

import dataclasses
from inspect import unwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import KINDS, opened
from kinds import make as make_kind
from rounding import FEW, LOGITS

from prefix_jax.errors import InputError
from prefix_jax.model.compose import average, bank, concatenate, interpolate
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig

TEXT = jnp.asarray([[7, 8, 9, 10], [3, 1, 4, 1], [40, 41, 42, 43]])


@pytest.fixture(scope="module")
def make(backbone):
    def make(length, seed=0, mode="shifted"):
        config = PrefixConfig(init="random", length=length, position_mode=mode)
        return init_prefix(backbone, config, key=jax.random.key(seed))()

    return make


@pytest.mark.parametrize("mode", ["shifted", "unshifted"])
def test_a_row_sees_its_own_prefix_only(backbone, make, mode):
    """Lengths may differ: positions that only pad a bank are never seen nor counted."""
    prefixes = [make(length, seed, mode) for seed, length in enumerate((2, 6, 4))]
    ids = jnp.array([2, 0, 1])
    mixed = backbone(TEXT, bank(prefixes), prefix_ids=ids)
    for row, i in enumerate(ids):
        alone = backbone(TEXT[row : row + 1], prefixes[i])
        np.testing.assert_allclose(mixed[row : row + 1], alone, **LOGITS)


def test_prefixes_of_different_layers_stand_in_one_bank(backbone):
    """Each row's layers have its own prefix's positions, and its text starts there."""
    prefixes = [
        opened(make_kind(backbone, **KINDS[kind]))()
        for kind in ("layers", "flat", "mlp lengths")
    ]
    mixed = backbone(TEXT, bank(prefixes), prefix_ids=jnp.array([2, 0, 1]))
    for row, i in enumerate([2, 0, 1]):
        alone = backbone(TEXT[row : row + 1], prefixes[i])
        np.testing.assert_allclose(mixed[row : row + 1], alone, atol=1e-5)


def test_infixes_and_gates_stand_in_a_bank_of_their_like(backbone):
    kinds = ("all", "all")
    after = jnp.broadcast_to(jnp.arange(4) >= 2, (2, 4))
    prefixes = [opened(make_kind(backbone, **KINDS[kind]))() for kind in kinds]
    prefixes[1] = prefixes[1].shorten(2)
    mixed = backbone(
        TEXT[:2], bank(prefixes), prefix_ids=jnp.array([1, 0]), after=after
    )
    for row, i in enumerate([1, 0]):
        alone = backbone(TEXT[row : row + 1], prefixes[i], after=after[:1])
        np.testing.assert_allclose(mixed[row : row + 1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("compose", "kinds", "message"),
    [
        (bank, ("flat", "infix"), "placed as infix and prefix 0 as prefix"),
        (bank, ("gate", "unshifted"), "prefix 0 is gated and prefix 1 is not"),
        (concatenate, ("flat", "layers"), "in every layer"),
        (concatenate, ("gate", "gate"), "prefix 0 is gated: it has a softmax"),
        (average, ("flat", "layers"), "in different layers"),
    ],
)
def test_kinds_that_cannot_stand_together_are_refused(
    backbone, compose, kinds, message
):
    settings = KINDS | {"unshifted": {"position_mode": "unshifted"}}
    prefixes = [make_kind(backbone, **settings[kind])() for kind in kinds]
    with pytest.raises(InputError, match=message):
        compose(prefixes)


def test_prefixes_of_the_same_layers_have_an_average(backbone):
    a = make_kind(backbone, **KINDS["layers"])()
    b = dataclasses.replace(a, values=3 * a.values)
    middle = average([a, b])
    np.testing.assert_allclose(middle.values, 2 * a.values, rtol=1e-6)
    np.testing.assert_array_equal(middle.lengths, a.lengths)


def test_no_gradient_reaches_the_other_prefixes(backbone, make):
    """Nor the padding of the one that is used."""
    many = bank([make(2), make(5, 1)])

    def total(keys):
        kv = dataclasses.replace(many, keys=keys)
        return backbone(TEXT[:1], kv, prefix_ids=jnp.array([0])).sum()

    gradient = jax.grad(total)(many.keys)
    assert np.all(gradient[:, 1] == 0)
    assert np.all(gradient[:, 0, 2:] == 0)
    assert np.any(gradient[:, 0, :2] != 0)


def test_neighbouring_rows_share_a_prefix_without_a_copy(backbone, make):
    two = bank([make(3), make(5, 1)])
    text = jnp.concatenate([TEXT[:2], TEXT[:2]])
    shared = backbone.logits(backbone.forward(text, prefix=two).hidden)
    named = backbone(text, two, prefix_ids=jnp.array([0, 0, 1, 1]))
    np.testing.assert_allclose(shared, named, **LOGITS)
    with pytest.raises(InputError, match="2 prefixes cannot be shared by 3 rows"):
        backbone.forward(TEXT, prefix=two)


def test_every_row_has_its_prefix_or_is_refused(backbone, make):
    two = bank([make(3), make(5, 1)])
    text = jnp.concatenate([TEXT[:2], TEXT[:2]])
    for prefix, ids, message in (
        (two, None, "2 prefixes for 4 rows"),
        (two, jnp.array([0, 1]), "2 prefix_ids for 4 rows"),
        (None, jnp.array([0, 0, 0, 0]), "0 prefixes"),
        (KV(two.keys[:2, :1], two.values[:2, :1]), None, "has 2 layers of 4 heads"),
    ):
        with pytest.raises(InputError, match=message):
            backbone(text, prefix, prefix_ids=ids)


@pytest.mark.parametrize("unknown", [2, -1])
def test_an_unknown_prefix_cannot_go_unseen(backbone, make, unknown):
    many = bank([make(2), make(2, 1)])
    logits = jax.jit(lambda ids: backbone(TEXT[:2], many, prefix_ids=ids))(
        jnp.array([0, unknown])
    )
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()
    with pytest.raises(InputError, match=f"asks for prefix {unknown}; there are 2"):
        backbone(TEXT[:2], many, prefix_ids=jnp.array([0, unknown]))


def test_concatenation_is_both_in_any_order(backbone, make):
    a, b = make(3), make(2, 1)
    both = concatenate([a, b])
    assert both.length == both.position_offset == 5
    np.testing.assert_allclose(
        backbone(TEXT, both), backbone(TEXT, concatenate([b, a])), **LOGITS
    )
    # The first tokens of a text, as a prefix, are the first part of the whole text's.
    words = backbone.forward(TEXT[:1], collect=True).kv
    first, second = (
        KV(words.keys[:, :, part], words.values[:, :, part])
        for part in (slice(0, 2), slice(2, 4))
    )
    continued = jnp.asarray([[5, 6]])
    whole = backbone(jnp.concatenate([TEXT[:1], continued], 1))[:, 4:]
    np.testing.assert_allclose(
        backbone(continued, concatenate([first, second])), whole, **LOGITS
    )


def test_averages(make):
    a, b = make(3), make(3, 1)
    middle = average([a, b])
    np.testing.assert_allclose(middle.keys, (a.keys + b.keys) / 2, **FEW)
    weighted = average([a, b], [3.0, 1.0])
    np.testing.assert_allclose(
        weighted.values, 0.75 * a.values + 0.25 * b.values, **FEW
    )
    same = average([a, a, a])
    np.testing.assert_allclose(same.keys, a.keys, **FEW)


def test_interpolation_ends_where_it_should(make):
    a, b = make(3), make(3, 1)
    np.testing.assert_array_equal(interpolate(a, b, 0.0).keys, a.keys)
    np.testing.assert_array_equal(interpolate(a, b, 1.0).keys, b.keys)
    np.testing.assert_allclose(
        interpolate(a, b, 0.25).keys, 0.75 * a.keys + 0.25 * b.keys, **FEW
    )


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda make: bank([]), "no prefixes"),
        (lambda make: bank([make(2), make(2, mode="unshifted")]), "two places"),
        (lambda make: bank([bank([make(2), make(2)])]), "N = 2"),
        (lambda make: average([make(2), make(3)]), "equal lengths"),
        (lambda make: average([make(2)], [1.0, 1.0]), "as many"),
        (lambda make: average([make(2), make(2)], [1.0, -1.0]), "sum to 0"),
        (lambda make: concatenate([make(2), bank([make(2), make(2)])]), "equal num"),
    ],
)
def test_what_cannot_stand_together_is_refused(make, compose, message):
    with pytest.raises(InputError, match=message):
        compose(make)


def test_backbones_cannot_be_mixed(make):
    a = make(2)
    other = KV(a.keys[:2], a.values[:2])
    with pytest.raises(InputError, match="different backbones"):
        bank([a, other])


def test_weights_may_be_traced(make):
    """A mixture can be learned."""
    one, other = make(4), make(4, seed=1)

    def mixed(t):
        return interpolate(one, other, t)

    chex.assert_trees_all_close(jax.jit(mixed)(0.3), mixed(0.3), rtol=1e-6)
    slope = jax.grad(lambda t: mixed(t).keys.sum())(0.3)
    np.testing.assert_allclose(slope, (other.keys - one.keys).sum(), rtol=1e-3)


@pytest.mark.parametrize(
    ("compose", "said"),
    [
        (lambda kv: unwrap(concatenate)(kv), "expected several prefixes, got one"),
        (
            lambda kv: unwrap(concatenate)(["runs/a"]),
            "got 'runs/a': load a stored one with",
        ),
        (
            lambda kv: unwrap(average)([kv, kv], ["x", "y"]),
            "weights must be finite numbers",
        ),
        (lambda kv: average([kv, kv], [1.0]), "2 prefixes need as many weights"),
        (lambda kv: unwrap(interpolate)(kv, kv, "x"), "t is 'x'; expected a number"),
    ],
)
def test_what_is_no_prefix_or_weight_is_refused(make, compose, said):
    """Unwrapped, as users have it: types are checked in the tests only."""
    with pytest.raises(InputError, match=said):
        compose(make(4))
