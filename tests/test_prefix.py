"""The prefix: what it starts as, and that folding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import grouped_too
from rounding import FEW, LOGITS

from prefix_jax.errors import InputError
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.prefix_start import activation_scale
from prefix_jax.prefix_config import PrefixConfig

KEY = jax.random.key(7)
TEXT = [5, 9, 2, 7, 7, 31, 8]


def make(backbone, **settings):
    settings = {"init": "random", "length": 6} | settings
    examples = settings.pop("tokens", ())
    return init_prefix(backbone, PrefixConfig(**settings), key=KEY, examples=examples)


@grouped_too
@pytest.mark.parametrize("kind", ["flat", "mlp"])
@pytest.mark.parametrize("init", ["random", "zeros", "examples"])
def test_shape_and_type(backbone, kind, init):
    kv = make(backbone, kind=kind, init=init, tokens=[TEXT])()
    config = backbone.config
    expected = (config.n_layer, 1, 6, config.kv_heads, config.head_width)
    assert kv.keys.shape == kv.values.shape == expected
    assert kv.keys.dtype == kv.values.dtype == jnp.float32


@grouped_too
@pytest.mark.parametrize("kind", ["flat", "mlp"])
def test_starts_as_the_activations_of_its_words(backbone, tokenizer, kind):
    """Law 2 at step 0: the prefix is those words in the prompt, for the MLP too."""
    words = "The mill by the river is old."
    ids = jnp.asarray(tokenizer.encode(words))[None]
    config = PrefixConfig(kind=kind, init="words", words=words, length=None)
    prefix = init_prefix(backbone, config, key=KEY, tokenizer=tokenizer)
    text = jnp.asarray([[40, 41, 42, 43]])
    with_words = backbone(jnp.concatenate([ids, text], 1))[:, ids.shape[1] :]
    np.testing.assert_allclose(backbone(text, prefix()), with_words, **LOGITS)


@grouped_too
@pytest.mark.parametrize("kind", ["flat", "mlp"])
def test_zeros_are_zeros(backbone, kind):
    kv = make(backbone, kind=kind, init="zeros")()
    assert not np.any(kv.keys) and not np.any(kv.values)


@grouped_too
def test_random_start_has_the_size_of_activations(backbone):
    """Within a factor of two: the scale is a power of two near their size."""
    kv = make(backbone, init="random", length=40)()
    tokens = jax.random.randint(jax.random.key(3), (1, 60), 0, 300)
    real = backbone.forward(tokens, collect=True).kv
    for ours, theirs in ((kv.keys, real.keys), (kv.values, real.values)):
        size, expected = (jnp.sqrt(jnp.square(x).mean((2, 4))) for x in (ours, theirs))
        assert np.all(np.abs(np.log2(size / expected)) < 1)


@grouped_too
def test_scales_are_powers_of_two(backbone):
    """So that multiplying by one never rounds."""
    scale = activation_scale(backbone, KEY)
    for x in (scale.keys, scale.values):
        mantissa, _ = np.frexp(x)
        assert np.all(mantissa == 0.5)


@grouped_too
def test_examples_share_the_length_and_keep_their_ends(backbone):
    kv = make(backbone, tokens=[[1, 2, 3], [4, 5, 6, 7, 8], [9]], length=6, init=None)()
    ends = make(backbone, tokens=[[2, 3, 6, 7, 8, 9]], length=6, init="examples")()
    shorter = make(backbone, tokens=[[3, 8, 9]], length=3, init="examples")()
    np.testing.assert_array_equal(kv.keys, ends.keys)
    kv = make(backbone, tokens=[[1, 2, 3], [4, 5, 6, 7, 8], [9]], length=3, init=None)()
    np.testing.assert_array_equal(kv.keys, shorter.keys)


@grouped_too
def test_no_examples_and_no_choice_is_a_random_start(backbone):
    given = make(backbone, init=None)()
    np.testing.assert_array_equal(given.keys, make(backbone, init="random")().keys)


@grouped_too
def test_text_repeats_to_the_length(backbone):
    whole = make(backbone, init="examples", tokens=[TEXT, TEXT], length=None)()
    assert whole.length == 2 * len(TEXT)
    long = make(backbone, init="examples", tokens=[TEXT], length=2 * len(TEXT))()
    np.testing.assert_allclose(long.keys, whole.keys, **FEW)


@grouped_too
@pytest.mark.parametrize("kind", ["flat", "mlp"])
def test_folded_equals_unfolded(backbone, kind):
    """Law 9: what is stored is the KV alone, and it is the same prefix."""
    prefix = make(backbone, kind=kind, init="random")
    folded = KV(jnp.asarray(prefix().keys), jnp.asarray(prefix().values))
    text = jnp.asarray([[1, 2, 3]])
    logits = jax.jit(lambda p: backbone(text, p()))(prefix)
    np.testing.assert_allclose(logits, backbone(text, folded), **LOGITS)


@grouped_too
def test_dropout_drops_elements_only_when_given_a_key(backbone):
    prefix = make(backbone, init="random", length=32, dropout=0.25)
    whole, dropped = prefix().keys, prefix(key=KEY).keys
    share = float((dropped == 0).mean())
    assert abs(share - 0.25) < 0.03
    np.testing.assert_allclose(
        dropped[dropped != 0], (whole / 0.75)[dropped != 0], **FEW
    )
    again = prefix(key=KEY).keys
    np.testing.assert_array_equal(dropped, again)


@grouped_too
def test_unshifted_text_counts_from_zero(backbone):
    text = jnp.asarray([[3, 1, 4]])
    kv = make(backbone, position_mode="unshifted")()
    explicit = backbone(text, kv, positions=jnp.arange(3)[None])
    np.testing.assert_array_equal(backbone(text, kv), explicit)
    shifted = make(backbone)()
    explicit = backbone(text, shifted, positions=6 + jnp.arange(3)[None])
    np.testing.assert_array_equal(backbone(text, shifted), explicit)


@grouped_too
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 64}, "of length 64 leaves no room for text in the .* 64 positions"),
        ({"init": "examples"}, "pass init_prefix"),
        ({"tokens": [[5, 300]], "init": "examples"}, "token 300, .* 0 to 299"),
        ({"tokens": [[5, -1]], "init": "examples", "length": 2}, "token -1, "),
        ({"init": "words", "words": "mill"}, "tokenizer="),
        ({"kind": "mlp", "hidden": 4, "init": "zeros"}, "raise prefix.hidden"),
    ],
)
def test_what_cannot_be_made_is_refused(backbone, settings, message):
    with pytest.raises(InputError, match=message):
        make(backbone, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"length": 0},
        {"dropout": 1.0},
        {"init": "words"},
        {"init": "zeros", "length": None},
        {"init": "examples", "examples": 0},
    ],
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(InputError):
        PrefixConfig(**settings)
