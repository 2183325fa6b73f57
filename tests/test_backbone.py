"""Laws of the model that need no other implementation.

Two programs that add up the same numbers in another order differ by f32 rounding, and
how far that moves a result depends on weights, input and what is asked for (logits or
gradients). So the bound is measured: the inputs of one program are changed by one unit
in the last place, at random, and the other program may differ by twice what that moves
(half of it was the most seen), plus four units of the result's largest entry.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import CONFIGS, each_family
from flax import nnx
from rounding import LOGITS

from prefix_jax.errors import InputError
from prefix_jax.model.attention import causal_mask
from prefix_jax.model.compose import bank
from prefix_jax.model.families import random_backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.layers import Own
from prefix_jax.model.loading import load_backbone

WORDS, TOKENS = 5, 9


def assert_equals(result, program, *inputs):
    """`result` is `program(*inputs)` to f32 rounding."""
    rng = np.random.default_rng(0)

    def nudge(x):
        if x.dtype != jnp.float32:
            return x
        signs = rng.choice([-1.0, 1.0], x.shape)
        return jnp.asarray(x * (1 + signs * 2.0**-23), jnp.float32)

    expected, nudged = program(*inputs), program(*jax.tree.map(nudge, inputs))
    trees = (result, expected, nudged)
    for leaves in zip(*map(jax.tree.leaves, trees), strict=True):
        x, y, z = map(np.asarray, leaves)
        assert x.shape == y.shape
        unit = 2.0**-23 * abs(y).max()
        assert abs(x - y).max() <= 2 * abs(z - y).max() + 4 * unit


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(0, 300, (2, WORDS + TOKENS)), jnp.int32)


@pytest.fixture(scope="module")
def prefix(backbone):
    return prefix_of(backbone)


def prefix_of(backbone):
    config = backbone.config
    shape = (config.n_layer, 1, WORDS, config.kv_heads, config.head_width)
    rng = np.random.default_rng(2)
    return KV(*jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32))


def copy_with(backbone, **attributes):
    copy = jax.tree.map(lambda x: x, backbone)
    for name, value in attributes.items():
        setattr(copy, name, value)
    return copy


def with_config(backbone, **changes):
    """The same weights in another variant."""
    config = dataclasses.replace(backbone.config, **changes)
    copy = copy_with(backbone, config=config)
    for stack in copy.blocks:
        stack.config = config
    return copy


@jax.jit
def logits(backbone, tokens, prefix=None, mask=None, positions=None):
    return backbone(tokens, prefix=prefix, mask=mask, positions=positions)


@jax.jit
def kv(backbone, tokens, prefix=None):
    return backbone.forward(tokens, prefix=prefix, collect=True).kv


@jax.jit
def loss_and_gradients(backbone, prefix, tokens):
    """Logits, next-token loss, and its gradients by backbone and prefix."""

    def loss(backbone, prefix):
        logits = backbone(tokens, prefix=prefix)
        chance = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(chance, tokens[:, 1:, None], 2).mean(), logits

    (value, logits), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        backbone, prefix
    )
    return logits, value, gradients


# Law 2.


@each_family
def test_prefix_of_real_words_equals_the_words(backbone, tokens):
    words, text = tokens[:, :WORDS], tokens[:, WORDS:]
    result = logits(backbone, text, kv(backbone, words))
    assert_equals(result, lambda x: logits(x, tokens)[:, WORDS:], backbone)


@each_family
def test_one_prefix_serves_every_row(backbone, tokens):
    """N = 1: the words of row 0 before each row's text."""
    words = jnp.broadcast_to(tokens[:1, :WORDS], (2, WORDS))
    text = tokens[:, WORDS:]
    result = logits(backbone, text, kv(backbone, words[:1]))
    whole = jnp.concatenate([words, text], axis=1)
    assert_equals(result, lambda x: logits(x, whole)[:, WORDS:], backbone)


@each_family
def test_words_before_padded_text(backbone, tokens):
    """The padding stands between words and text, which has positions of its own."""
    pad = 3
    words, text = tokens[:, :WORDS], tokens[:, WORDS:]
    padded = jnp.pad(text, ((0, 0), (pad, 0)))
    mask = jnp.broadcast_to(jnp.arange(pad + TOKENS) >= pad, padded.shape)
    positions = jnp.maximum(jnp.arange(pad + TOKENS) - pad, 0)[None] + WORDS
    result = logits(backbone, padded, kv(backbone, words), mask, positions)
    result = result[:, pad:]
    assert_equals(result, lambda x: logits(x, tokens)[:, WORDS:], backbone)


def test_unshifted_text_starts_at_position_0(backbone, prefix, tokens):
    unshifted = dataclasses.replace(prefix, position_mode="unshifted")
    positions = jnp.arange(tokens.shape[1])[None]
    result = logits(backbone, tokens, unshifted)
    assert_equals(result, logits, backbone, tokens, prefix, None, positions)
    assert float(abs(result - logits(backbone, tokens, prefix)).max()) > 0.1


# Law 3.


def embedded(backbone, tokens):
    return backbone.token_embedding[...][tokens]


@each_family
@pytest.mark.parametrize("with_prefix", [False, True])
def test_nothing_later_or_padded_moves_a_logit(with_prefix, backbone, prefix, tokens):
    kv, pad = prefix if with_prefix else None, 2
    length = tokens.shape[1]
    mask = jnp.broadcast_to(jnp.arange(length) >= pad, tokens[:1].shape)
    weight = np.random.default_rng(3).normal(size=300).astype(np.float32)

    def logit(x, t):
        hidden = backbone.forward(x, prefix=kv, mask=mask).hidden
        return backbone.logits(hidden[0, t]) @ weight

    x = embedded(backbone, tokens[:1])
    gradient = jax.jit(jax.vmap(jax.grad(logit), (None, 0)))(x, jnp.arange(length))
    moves = np.asarray(abs(gradient).max(-1) != 0)[:, 0]
    expected = np.tril(np.ones((length, length), bool))
    expected[:, :pad] = False
    np.testing.assert_array_equal(moves[pad:], expected[pad:])


@each_family
def test_rows_do_not_move_each_other(backbone, tokens):
    @jax.jit
    @jax.grad
    def gradient(x):
        return backbone.forward(x).hidden[0].max(-1).sum()

    moves = abs(gradient(embedded(backbone, tokens))).max(-1)
    assert (moves[0] > 0).any()
    assert (moves[1] == 0).all()


# Windows.


@pytest.fixture(scope="module")
def narrow():
    """Three layers, each of which sees the token before."""
    config = dataclasses.replace(CONFIGS["windows"], sliding_window=2, layer_types=None)
    return random_backbone(config, key=jax.random.key(0))


def test_layers_see_no_further_than_their_windows(narrow, prefix, tokens):
    @jax.jit
    @jax.grad
    def moves(x):
        return narrow.forward(x).hidden[0, 9].sum()

    moved = abs(moves(embedded(narrow, tokens))[0]).max(-1) > 0
    assert np.flatnonzero(moved).tolist() == [6, 7, 8, 9]

    @jax.jit
    @jax.grad
    def of_prefix(kv):
        return narrow.forward(tokens, prefix=kv).hidden[0, 1].sum()

    kv = prefix_of(narrow)
    moved = abs(of_prefix(kv).values)[:, 0].max((-1, -2)) > 0  # L P
    # The second token sees the first alone, which sees the last one of the prefix.
    assert [np.flatnonzero(one).tolist() for one in moved] == [[4], [4], []]


@pytest.mark.parametrize("mode", ["shifted", "unshifted"])
def test_windows_count_real_positions_only(narrow, tokens, mode):
    """A short prefix beside a long one, and one cut, are what they are alone."""
    kv = dataclasses.replace(prefix_of(narrow), position_mode=mode)
    short = kv.shorten(3)
    alone = logits(narrow, tokens[:1], short)
    beside = bank([short, kv]).select(jnp.array([0]))
    np.testing.assert_allclose(logits(narrow, tokens[:1], beside), alone, **LOGITS)
    cut = logits(narrow, tokens[:1], kv.limit(3))
    np.testing.assert_allclose(cut, alone, **LOGITS)


# Section 4: f32 means f32, also on a TPU, whose default is one bf16 pass.


@each_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_f32_are_exact_on_every_device(dtype, backbone, prefix, tokens):
    narrow = copy_with(
        jax.tree.map(lambda x: x.astype(dtype), backbone), dtype=jnp.dtype(dtype)
    )
    text = str(jax.make_jaxpr(loss_and_gradients)(narrow, prefix, tokens))
    products = re.findall(r"dot_general\[\n(.*?)\n\s*\] ", text, re.DOTALL)
    assert len(products) > 10
    highest = ["Precision.HIGHEST" in product for product in products]
    assert all(highest) if dtype == "float32" else not any(highest)


# Law 5.


@each_family
@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_rematerialised_equals_not(keeps, backbone, prefix, tokens):
    remat = copy_with(backbone, remat=True, remat_keeps=keeps)
    assert "remat" in str(jax.make_jaxpr(remat)(tokens))
    result = loss_and_gradients(remat, prefix, tokens)
    assert_equals(result, loss_and_gradients, backbone, prefix, tokens)


def test_products_that_are_kept_are_not_computed_again(backbone, prefix, tokens):
    """A layer's products with weights, but for the last, which nobody needs again."""

    def products(**how):
        remat = copy_with(backbone, **how)
        text = str(jax.make_jaxpr(loss_and_gradients)(remat, prefix, tokens))
        return text.count("dot_general[")

    without = products()
    kept = products(remat=True, remat_keeps="products")
    assert without < kept == products(remat=True) - 3


def test_scanned_equals_unrolled(backbone, tokens):
    @jax.jit
    def unrolled(backbone):
        x = backbone.token_embedding[...][tokens]
        x += backbone.position_embedding[...][None, : tokens.shape[1]]
        own = Own(causal_mask(tokens.shape[1], None))
        (stack,) = backbone.blocks
        for i in range(backbone.config.n_layer):
            block = jax.tree.map(lambda x, i=i: x[i], stack)
            x, _, _ = block.attend(x, [], own, jnp.asarray(i), None, False)
            x += block.mlp(x)
        return backbone.logits(backbone.ln_f(x))

    assert_equals(unrolled(backbone), logits, backbone, tokens)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rematt": True}, 'no option rematt; .*did you mean "remat"'),
        ({"unroll": 4}, "unroll is 4; expected False or True"),
        ({"remat_keeps": "banana"}, "is 'banana'; expected 'nothing' or 'products'"),
    ],
)
def test_what_is_no_way_to_compute_is_refused(how, message):
    with pytest.raises(InputError, match=message):
        load_backbone("tiny", **how)


@each_family
def test_layers_compiled_for_themselves_equal_a_loop(backbone, prefix, tokens):
    alone = copy_with(backbone, unroll=True)
    assert "while" in jax.jit(logits).lower(backbone, tokens).as_text()
    assert "while" not in jax.jit(logits).lower(alone, tokens).as_text()
    result = loss_and_gradients(alone, prefix, tokens)
    assert_equals(result, loss_and_gradients, backbone, prefix, tokens)


@pytest.mark.parametrize("sizes", [(1, 2), (1, 1, 1)])
def test_parted_into_stacks_equals_whole(sizes, backbone, prefix, tokens):
    """Also where a layer's number counts: it goes on from stack to stack."""
    backbone = with_config(backbone, scale_attn_by_inverse_layer_idx=True)
    parts = backbone.parted(*sizes)
    assert_equals(kv(parts, tokens, prefix), kv, backbone, tokens, prefix)
    assert_equals(logits(parts, tokens, prefix), logits, backbone, tokens, prefix)


@each_family
def test_parted_into_stacks_trains_like_the_whole(backbone, prefix, tokens):
    parts = backbone.parted(1, 2)
    result = loss_and_gradients(parts, prefix, tokens)
    gradient = result[2][0]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *gradient.blocks)
    gradient.blocks = nnx.List([joined])
    assert_equals(result, loss_and_gradients, backbone, prefix, tokens)


def test_text_beyond_the_position_table_is_refused(backbone, prefix):
    tokens = jnp.zeros((1, 60), jnp.int32)
    with pytest.raises(InputError, match=r"5 \+ 60 tokens = 65.*64.*59 tokens"):
        backbone(tokens, prefix=prefix)
    unshifted = dataclasses.replace(prefix, position_mode="unshifted")
    assert backbone(tokens, prefix=unshifted).shape == (1, 60, 300)
