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
from flax import nnx

from prefix_jax.errors import InputError
from prefix_jax.model.activations import PARAMETERS, activation
from prefix_jax.model.attention import causal_mask
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.kv import KV
from prefix_jax.model.layers import Own

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
    config = backbone.config
    shape = (config.n_layer, 1, WORDS, config.n_head, config.head_width)
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


def test_prefix_of_real_words_equals_the_words(backbone, tokens):
    words, text = tokens[:, :WORDS], tokens[:, WORDS:]
    result = logits(backbone, text, kv(backbone, words))
    assert_equals(result, lambda x: logits(x, tokens)[:, WORDS:], backbone)


def test_one_prefix_serves_every_row(backbone, tokens):
    """N = 1: the words of row 0 before each row's text."""
    words = jnp.broadcast_to(tokens[:1, :WORDS], (2, WORDS))
    text = tokens[:, WORDS:]
    result = logits(backbone, text, kv(backbone, words[:1]))
    whole = jnp.concatenate([words, text], axis=1)
    assert_equals(result, lambda x: logits(x, whole)[:, WORDS:], backbone)


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


@pytest.mark.parametrize("with_prefix", [False, True])
def test_nothing_later_or_padded_moves_a_logit(with_prefix, backbone, prefix, tokens):
    """Each position's row of the position table stands for its token's embedding."""
    kv, start = (prefix, WORDS) if with_prefix else (None, 0)
    length, pad = tokens.shape[1], 2
    mask = jnp.broadcast_to(jnp.arange(length) >= pad, tokens[:1].shape)
    weight = np.random.default_rng(3).normal(size=300).astype(np.float32)

    def logit(table, t):
        model = copy_with(backbone, position_embedding=nnx.Param(table))
        return model(tokens[:1], prefix=kv, mask=mask)[0, t] @ weight

    table = backbone.position_embedding[...]
    gradient = jax.jit(jax.vmap(jax.grad(logit), (None, 0)))(table, jnp.arange(length))
    moves = np.asarray(abs(gradient).max(-1) != 0)[:, start : start + length]
    expected = np.tril(np.ones((length, length), bool))
    expected[:, :pad] = False
    np.testing.assert_array_equal(moves[pad:], expected[pad:])


def test_rows_do_not_move_each_other(backbone, tokens):
    length = tokens.shape[1]
    positions = jnp.arange(2 * length).reshape(2, length)

    @jax.jit
    def gradient(table):
        def first_row(table):
            model = copy_with(backbone, position_embedding=nnx.Param(table))
            return model(tokens, positions=positions)[0].max()

        return abs(jax.grad(first_row)(table)).max(-1)

    moves = gradient(backbone.position_embedding[...])
    assert (moves[:length] > 0).any()
    assert (moves[length:] == 0).all()


# Section 4: f32 means f32, also on a TPU, whose default is one bf16 pass.


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


def test_rematerialised_equals_not(backbone, prefix, tokens):
    remat = copy_with(backbone, remat=True)
    assert "remat" in str(jax.make_jaxpr(remat)(tokens))
    result = loss_and_gradients(remat, prefix, tokens)
    assert_equals(result, loss_and_gradients, backbone, prefix, tokens)


def test_scanned_equals_unrolled(backbone, tokens):
    @jax.jit
    def unrolled(backbone):
        x = backbone.token_embedding[...][tokens]
        x += backbone.position_embedding[...][None, : tokens.shape[1]]
        own = Own(causal_mask(tokens.shape[1], None))
        (stack,) = backbone.blocks
        for i in range(backbone.config.n_layer):
            block = jax.tree.map(lambda x, i=i: x[i], stack)
            x, _, _ = block(x, [], own, jnp.asarray(i), False)
        return backbone.logits(backbone.last_norm(x))

    assert_equals(unrolled(backbone), logits, backbone, tokens)


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


def test_parted_into_stacks_trains_like_the_whole(backbone, prefix, tokens):
    parts = backbone.parted(1, 2)
    result = loss_and_gradients(parts, prefix, tokens)
    gradient = result[2][0]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *gradient.blocks)
    gradient.blocks = nnx.List([joined])
    assert_equals(result, loss_and_gradients, backbone, prefix, tokens)


# The configuration.


def test_config_reads_what_hugging_face_writes():
    values = {
        "model_type": "gpt2",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "max_position_embeddings": 16,
        "eos_token_id": [5, 6],
        "attn_pdrop": 0.1,
        "summary_type": "cls_index",
        "auto_map": {"AutoModel": "code.Model"},
    }
    expected = GPT2Config(n_embd=8, n_head=2, n_layer=3, n_positions=16, eos_token_id=5)
    assert GPT2Config.from_dict(values) == expected
    assert hash(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_embd": 10, "n_head": 3}, "n_embd 10 is not a multiple of n_head 3"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_inner": -1}, "n_inner is -1"),
        ({"activation_function": "geluu"}, "'geluu' is not supported.*gelu_new"),
    ],
)
def test_config_says_what_it_cannot_be(values, message):
    with pytest.raises(InputError, match=message):
        GPT2Config.from_dict(values)


def test_text_beyond_the_position_table_is_refused(backbone, prefix):
    tokens = jnp.zeros((1, 60), jnp.int32)
    with pytest.raises(InputError, match=r"5 \+ 60 tokens = 65.*64.*59 tokens"):
        backbone(tokens, prefix=prefix)
    unshifted = dataclasses.replace(prefix, position_mode="unshifted")
    assert backbone(tokens, prefix=unshifted).shape == (1, 60, 300)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_activations_are_trained(name):
    """But for xielu's beta and eps, which Hugging Face keeps as buffers."""
    x = jnp.linspace(-2, 2, 6)
    starts = {key: jnp.array(start) for key, start in PARAMETERS[name].items()}
    slopes = jax.grad(lambda starts: activation(name)(x, **starts).sum())(starts)
    for key, slope in slopes.items():
        assert bool((slope != 0).all()) == (key not in ("beta", "eps")), key
