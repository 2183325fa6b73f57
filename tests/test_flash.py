"""Fused attention equals the plain one; Pallas interprets its kernels here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused import (
    HEADS,
    KINDS,
    SCALE,
    WIDTH,
    assert_near,
    interpreted_kernels,
    segments_of,
)

from prefix_jax.model.attention import KeyBlock, attend_causally
from prefix_jax.model.flash import Texts, fits, flash_attention, fuses
from prefix_jax.model.flash_gpu_kernels import BLOCK
from prefix_jax.model.segments import segment_mask

kernels = pytest.fixture(params=KINDS)(interpreted_kernels)


def draw(rows, length, number, positions, seed=0):
    """Queries, keys and values; N prefixes; and slopes of what attention gives."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.bfloat16)

    qkv = normal(rows, length, HEADS, 3, WIDTH)
    prefix = None
    if positions:
        shape = number, positions, HEADS, WIDTH
        prefix = normal(*shape), normal(*shape)
    return qkv, prefix, normal(rows, length, HEADS, WIDTH)


def plain(qkv, prefix, segments):
    """The same in f32 by `attend_causally`, which is tested elsewhere."""
    query, key, value = jnp.moveaxis(qkv.astype(jnp.float32), 3, 0)
    seen = []
    if prefix is not None:
        seen = [KeyBlock.of(*(x.astype(jnp.float32) for x in prefix), None)]
    own = KeyBlock.of(key, value, segment_mask(segments))
    return attend_causally(query, seen, own, SCALE)


CASES = {
    # rows, length, prefixes, their positions, longest text, padding
    "one text": (1, 2 * BLOCK, 1, 5, None, 0),
    "a few texts in blocks": (1, 3 * BLOCK, 1, 1, 3 * BLOCK, 0),
    "short texts": (2, 2 * BLOCK, 1, 5, 9, 3),
    "texts longer than a block": (1, 5 * BLOCK, 1, 16, 150, 0),
    "no prefix": (2, BLOCK, 1, 0, 30, 0),
    "a prefix for each row": (2, BLOCK, 2, 17, 30, 1),
    "two rows share each": (4, BLOCK, 2, 3, BLOCK, 0),
    "a prefix longer than a block": (1, BLOCK, 1, BLOCK + 5, 20, 0),
    "one text of many blocks": (1, 11 * BLOCK, 1, 5, None, 0),
    "rows of many blocks": (3, 11 * BLOCK, 1, 5, 400, 60),
    "as much padding as text": (1, 10 * BLOCK, 1, 5, 300, 300),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_plain_attention(kernels, case):
    """Values and every gradient."""
    rows, length, number, positions, longest, padding = CASES[case]
    segments = segments_of(rows, length, longest, padding)
    qkv, prefix, slope = draw(rows, length, number, positions)
    texts = Texts.of(rows, length, jnp.asarray(segments))

    @jax.jit
    def fused(qkv, prefix, slope):
        mixed, pull = jax.vjp(
            lambda *given: flash_attention(*given, texts, SCALE), qkv, prefix
        )
        return mixed, pull(slope)

    @jax.jit
    def expected(qkv, prefix, slope):
        mixed, pull = jax.vjp(
            lambda *given: plain(*given, jnp.asarray(segments)), qkv, prefix
        )
        return mixed, pull(slope.astype(jnp.float32))

    assert_near(fused(qkv, prefix, slope), expected(qkv, prefix, slope))


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_texts_of_any_length(length):
    texts = Texts.of(2, length, None)
    assert texts.padded % BLOCK == 0
    assert texts.padded - length < BLOCK
    assert (texts.start[:, :length] == 0).all()
    assert (texts.stop[:, :length] == length).all()
    assert (texts.start[:, length:] == length).all()


def at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def test_vmap_equals_a_loop(kernels):
    """Over texts, and over prefixes of the same texts, with gradients."""
    qkv, _, _ = draw(3, BLOCK, 1, 0)
    stacked = jnp.stack([qkv, qkv[::-1]])
    pair = (draw(1, BLOCK, 1, 4, seed)[1] for seed in (1, 2))
    prefixes = jax.tree.map(lambda *x: jnp.stack(x), *pair)
    texts = Texts.of(3, BLOCK, None)

    def summed(qkv, prefix):
        mixed = flash_attention(qkv, prefix, texts, SCALE).astype(jnp.float32)
        return jnp.square(mixed).sum()

    grad = jax.jit(jax.value_and_grad(summed, (0, 1)))
    for axes, given in [
        ((0, None), (stacked, at(prefixes, 0))),
        ((None, 0), (qkv, prefixes)),
        ((0, 0), (stacked, prefixes)),
    ]:
        found = jax.vmap(grad, axes)(*given)
        singly = [
            grad(
                *(
                    x if axis is None else at(x, i)
                    for x, axis in zip(given, axes, strict=True)
                )
            )
            for i in range(2)
        ]
        assert_near(found, jax.tree.map(lambda *x: jnp.stack(x), *singly))


@pytest.mark.parametrize(
    ("platform", "call"),
    [
        ("tpu", "tpu_custom_call"),
        pytest.param(
            "cuda",
            "__gpu$xla.gpu.triton",
            marks=pytest.mark.skipif(
                jax.__version_info__ >= (0, 11), reason="this jax needs a GPU for it"
            ),
        ),
    ],
)
def test_lowers_to_kernels(platform, call):
    """As far as that goes without a device: the whole of Pallas' own lowering."""
    qkv, prefix, _ = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        for x in draw(2, 2 * BLOCK, 1, 5)
    )
    texts = Texts.of(2, 2 * BLOCK, None)

    def summed(qkv, prefix):
        mixed = flash_attention(qkv, prefix, texts, SCALE)
        return mixed.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(summed, (0, 1))).trace(qkv, prefix)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count(call) == 3, "forward, texts, prefix"


def test_a_shared_prefix_has_a_gradient_of_f32():
    """Summed over the rows before it is rounded, if ever."""
    qkv, prefix, slope = draw(8, BLOCK, 1, 5)
    texts = Texts.of(8, BLOCK, None)
    prefix = jax.tree.map(lambda x: x.astype(jnp.float32), prefix)

    def of_rows(rows):
        part = Texts(texts.start[rows], texts.stop[rows])

        def mixed(prefix):
            return flash_attention(qkv[rows], prefix, part, SCALE)

        return jax.vjp(mixed, prefix)[1](slope[rows])[0]

    every = [of_rows(slice(row, row + 1)) for row in range(8)]
    total = jax.tree.map(lambda *x: sum(x), *every)
    for one, other in zip(of_rows(slice(None)), total, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_fits():
    assert fits(jnp.dtype("bfloat16"), 64)
    assert not fits(jnp.dtype("float16"), 64)
    assert not fits(jnp.dtype("float32"), 64)
    assert not fits(jnp.dtype("bfloat16"), 80)
    assert not fits(jnp.dtype("bfloat16"), 8)


def test_for_which_devices():
    for capability in ("8.0", "10.0"):
        assert fuses("gpu", "NVIDIA", capability)
    for capability in ("7.5", "gfx90a", ""):
        assert not fuses("gpu", "another", capability)
    assert fuses("tpu", "TPU v4") and fuses("tpu", "TPU v5 lite")
    assert not fuses("tpu", "TPU v3") and not fuses("cpu", "cpu")
