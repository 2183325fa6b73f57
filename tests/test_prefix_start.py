"""What a prefix of every kind starts from: labels, another prefix, embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import grouped_too
from kinds import KINDS, LENGTH, make, opened, read

from prefix_jax.errors import InputError
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig

pytestmark = grouped_too
KEY = jax.random.key(8)


@pytest.mark.parametrize("kind", ["flat", "mlp", "embedding"])
def test_labels_share_the_length(backbone, tokenizer, kind):
    """As the words, each with the space before it; the longest lose beginnings."""
    labels = ("mill", "river", "old")
    ids = [tokenizer.encode(f" {label}") for label in labels]
    whole = [token for label in ids for token in label]
    for length, expected in ((None, whole), (3, [label[-1] for label in ids])):
        config = PrefixConfig(kind=kind, init="labels", labels=labels, length=length)
        prefix = init_prefix(backbone, config, key=KEY, tokenizer=tokenizer)
        text = jnp.asarray([[40, 41]])
        before = jnp.asarray([expected])
        words = backbone(jnp.concatenate([before, text], 1))[:, len(expected) :]
        kv = prefix.fold(backbone)
        np.testing.assert_allclose(backbone(text, kv), words, atol=2e-5)


@pytest.mark.parametrize("kind", ["flat", "mlp"])
@pytest.mark.parametrize("of", ["flat", "infix", "mlp lengths", "gate", "all"])
def test_starts_as_another_prefix(backbone, kind, of):
    """At step 0 it is the other one, gates included."""
    settings = {k: v for k, v in KINDS[of].items() if k not in ("kind", "hidden")}
    start = opened(make(backbone, **KINDS[of]))()
    settings |= {"kind": kind} | ({"hidden": 16} if kind == "mlp" else {})
    settings |= {"init": "prefix", "start": "DIR"}
    if "lengths" not in settings:
        settings["length"] = None
    config = PrefixConfig(**settings)
    prefix = init_prefix(backbone, config, key=KEY, start=start)
    np.testing.assert_allclose(
        read(backbone, prefix()), read(backbone, start), atol=3e-5
    )


def test_a_longer_start_is_cut_and_a_shorter_one_repeats(backbone):
    start = make(backbone)()
    config = PrefixConfig(init="prefix", start="DIR", length=2)
    shorter = init_prefix(backbone, config, key=KEY, start=start)()
    np.testing.assert_array_equal(shorter.keys, start.shorten(2).keys)
    config = PrefixConfig(init="prefix", start="DIR", length=6)
    longer = init_prefix(backbone, config, key=KEY, start=start)()
    np.testing.assert_array_equal(longer.values[:, :, :4], start.values)
    np.testing.assert_array_equal(longer.values[:, :, 4:], start.values[:, :, :2])


def test_embeddings_start_from_embeddings(backbone):
    vectors = make(backbone, kind="embedding").embeddings()
    config = PrefixConfig(kind="embedding", init="prefix", start="DIR", length=6)
    prefix = init_prefix(backbone, config, key=KEY, start=vectors)
    np.testing.assert_array_equal(prefix.embeddings()[:4], vectors)
    np.testing.assert_array_equal(prefix.embeddings()[4:], vectors[:2])


@pytest.mark.parametrize(
    ("settings", "start", "message"),
    [
        ({"lengths": (1, 2)}, None, "2 numbers; the backbone has 3 layers"),
        ({"layers": (0, 3)}, None, "prefix.layers has 3; the backbone has 3 layers, 0"),
        ({"init": "prefix"}, None, r"pass init_prefix\(..., start="),
        ({"init": "prefix"}, "infix", "placement 'infix' and prefix.placement is"),
        ({"init": "prefix"}, "gate", "set prefix.position_mode to 'unshifted'"),
        (
            {"init": "prefix", "position_mode": "unshifted"},
            "gate",
            "has gate True and prefix.gate is False",
        ),
        ({"init": "prefix"}, "layers", "no position in layer 1, where 4 are wanted"),
        ({"init": "prefix"}, "vectors", "starts from keys and values"),
        ({"init": "prefix", "kind": "embedding"}, "flat", "cannot be turned back"),
        ({"init": "labels", "labels": ("a", "b")}, None, "tokenizer="),
        ({"init": "prefix", "length": None, "nested": (9,)}, "flat", "has 9 positions"),
    ],
)
def test_what_cannot_be_made_is_refused(backbone, settings, start, message):
    if start == "vectors":
        start = jnp.zeros((LENGTH, 32))
    elif start is not None:
        start = make(backbone, **KINDS[start])()
    others = {"start": "DIR"} if settings.get("init") == "prefix" else {}
    if "lengths" not in settings:
        settings = {"length": LENGTH} | settings
    config = PrefixConfig(**{"init": "random"} | settings | others)
    with pytest.raises(InputError, match=message):
        init_prefix(backbone, config, key=KEY, start=start)
