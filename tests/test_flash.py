"""Fused attention equals the plain one; Pallas interprets its kernels here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefix_jax.config import MeshConfig, OptimConfig, TrainConfig
from prefix_jax.data.batches import eval_batches
from prefix_jax.data.tokens import Row
from prefix_jax.learning.loss import loss_sums
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.split import split
from prefix_jax.learning.step import (
    init_train_state,
    make_eval_step,
    make_train_step,
)
from prefix_jax.mesh import make_mesh
from prefix_jax.model import flash, flash_gpu, flash_tpu, flash_tpu_kernels
from prefix_jax.model.attention import KeyBlock, attend_causally
from prefix_jax.model.families import random_backbone
from prefix_jax.model.flash import Texts, fits, flash_attention, fuses
from prefix_jax.model.flash_gpu_kernels import BLOCK
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.segments import segment_mask
from prefix_jax.prefix_config import PrefixConfig

HEADS, WIDTH = 2, 16
SCALE = WIDTH**-0.5
BF16 = 0.01
"""How far, relative to their norm, products of bf16 numbers may be from those of f32:
each is off by up to 0.002 (0.0036 seen)."""


def assert_near(found, expected):
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        assert one.shape == other.shape
        assert np.linalg.norm(one - other) <= BF16 * np.linalg.norm(other)


def segments_of(rows, length, longest, padding=0, seed=0):
    """Texts of random lengths up to `longest` (None: one text), then padding."""
    random = np.random.default_rng(seed)
    segments = np.ones((rows, length), np.int32)
    for row in segments if longest else ():
        ends = random.integers(1, longest + 1, length).cumsum()
        row[:] = 1 + np.searchsorted(ends, np.arange(length), side="right")
        row[length - padding :] = 0
    return segments


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


@pytest.fixture(params=["gpu", "tpu, 128", "tpu, 256"])
def kernels(request, monkeypatch):
    """Each kind of kernels, in place of the GPU's; a TPU's in blocks of a size."""
    kind, _, size = request.param.partition(", ")
    if kind == "tpu":
        for name in ("forward", "text_gradient", "prefix_gradient"):
            monkeypatch.setattr(flash_gpu, name, getattr(flash_tpu, name))
        monkeypatch.setattr(flash_tpu, "BLOCK", int(size))
        # Products of bf16 in f32, exact as a TPU's: jax 0.12 has none here on CPUs.
        monkeypatch.setattr(
            flash_tpu_kernels,
            "_dot",
            lambda x, y: jnp.dot(x.astype(jnp.float32), y.astype(jnp.float32)),
        )


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


# --- in the model -------------------------------------------------------------

ROWS, TOKENS = 8, 64
FAMILIES = {
    "gpt2": {},
    "llama": {"family": LlamaConfig, "n_inner": 96, "num_key_value_heads": 1},
}


def make_backbone(fused, family=GPT2Config, **variant):
    config = family(
        vocab_size=100,
        n_positions=128,
        n_embd=HEADS * WIDTH,
        n_layer=2,
        n_head=HEADS,
        initializer_range=0.3,
        **variant,
    )
    key = jax.random.key(0)
    backbone = random_backbone(config, key=key, dtype="bfloat16", fused=fused)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), backbone)


def make_batch():
    segments = segments_of(ROWS, TOKENS, 20, padding=4)
    random = np.random.default_rng(1)
    batch = {
        "tokens": random.integers(0, 100, (ROWS, TOKENS)).astype(np.int32),
        "mask": segments > 0,
        "loss_mask": (random.random((ROWS, TOKENS)) < 0.5) & (segments > 0),
        "segments": segments,
    }
    return jax.tree.map(jnp.asarray, batch)


def train(fused, mesh=None, parallel="jit"):
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2), 20)
    backbone = make_backbone(fused)
    prefix = init_prefix(
        backbone, PrefixConfig(init="random", length=5), key=jax.random.key(1)
    )
    trainable, frozen = split({"backbone": backbone, "prefix": prefix}, "prefix")
    state = init_train_state(trainable, optimizer, jax.random.key(2))
    step = make_train_step(optimizer, TrainConfig(batch_size=ROWS), mesh, parallel)
    if parallel == "jit":
        step = step.lower(state, frozen, make_batch()).compile()
    text = step.as_text() if parallel == "jit" else ""
    _, metrics = step(state, frozen, make_batch())
    return metrics, text


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient(family):
    found = []
    for fused in (False, True):
        backbone = make_backbone(fused, **FAMILIES[family])
        prefix = init_prefix(
            backbone, PrefixConfig(init="random", length=5), key=jax.random.key(1)
        )

        def loss(prefix, backbone=backbone):
            return loss_sums(backbone, prefix.fold(backbone), make_batch()).smoothed

        found.append(jax.jit(jax.value_and_grad(loss))(prefix))
    # Both round to bf16 after each layer, at different places: the difference is
    # twice that of one from f32, and grows on the way back through the layers.
    (one, gradient), (other, fused_gradient) = found
    np.testing.assert_allclose(one, other, rtol=1e-3)
    flat, fused_flat = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (gradient, fused_gradient)
    )
    assert np.linalg.norm(flat - fused_flat) < 0.03 * np.linalg.norm(flat)


MESHES = [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_eight_devices_equal_one(kernels, axes):
    """Each computes its own rows and heads: nothing is gathered for the kernels."""
    metrics, _ = train(fused=True)
    again, text = train(fused=True, mesh=make_mesh(MeshConfig(**axes)))
    np.testing.assert_allclose(metrics["loss"], again["loss"], rtol=1e-3)
    np.testing.assert_allclose(metrics["grad_norm"], again["grad_norm"], rtol=0.02)
    if axes == {"data": 8}:
        assert not re.search(r"all-gather|all-to-all|reduce-scatter", text)


@pytest.mark.parametrize(
    ("axes", "rows", "heads"),
    [
        ({"data": 8}, ROWS // 8, HEADS),
        ({"data": 2, "fsdp": 2, "tensor": 2}, ROWS // 4, HEADS // 2),
        ({"data": 2, "tensor": 4}, ROWS // 2, HEADS),  # which 4 do not divide
    ],
    ids=str,
)
@pytest.mark.parametrize("made", [make_train_step, make_eval_step])
def test_kernels_are_given_their_part(monkeypatch, axes, rows, heads, made):
    given = []
    whole = flash_gpu.forward
    monkeypatch.setattr(
        flash_gpu,
        "forward",
        lambda x, *a, **k: given.append(x.shape) or whole(x, *a, **k),
    )
    mesh = make_mesh(MeshConfig(**axes))
    if made is make_train_step:
        train(fused=True, mesh=mesh)
    else:
        made(mesh).lower(make_backbone(True), None, make_batch())
    assert {(shape[0], shape[2]) for shape in given} == {(rows, heads)}


def test_pmap_equals_jit():
    mesh = make_mesh(MeshConfig(data=4))
    metrics, _ = train(fused=True, mesh=mesh)
    again, _ = train(fused=True, mesh=mesh, parallel="pmap")
    np.testing.assert_allclose(metrics["loss"], again["loss"], rtol=1e-3)


def forward(fused, prefix=None, **given):
    tokens = make_batch()["tokens"]
    backbone = make_backbone(fused, **given.pop("variant", {}))
    return np.asarray(backbone.hidden_states(tokens, prefix, **given), np.float32)


@pytest.fixture
def launched(monkeypatch):
    """Whether a kernel was called."""
    calls = []
    whole = flash._forward
    monkeypatch.setattr(
        flash, "_forward", lambda *given: calls.append(1) or whole(*given)
    )
    return calls


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", ["nothing", "segments"])
def test_whole_texts_are_fused(launched, given, family):
    extra = {"variant": FAMILIES[family]}
    if given == "segments":
        extra["segments"] = make_batch()["segments"]
    assert_near(forward(True, **dict(extra)), forward(False, **dict(extra)))
    assert launched


def test_padded_rows_are_fused_too(launched):
    rows = [
        Row(np.arange(1, n, dtype=np.int32), np.ones(n - 1, bool)) for n in (5, 9, 3)
    ]
    [batch] = eval_batches(rows, batch_size=4, buckets=(64,), pad_id=0)
    batch = jax.tree.map(jnp.asarray, batch)
    sums = [loss_sums(make_backbone(fused), None, batch) for fused in (True, False)]
    assert launched
    np.testing.assert_allclose(sums[0].row_nll, sums[1].row_nll, rtol=0.01)


def test_short_rows_are_not_padded_for_it(launched):
    """Of 40 tokens whole blocks are 64: more than kernels could save."""
    batch = jax.tree.map(lambda x: x[:, :40], make_batch())
    sums = [loss_sums(make_backbone(fused), None, batch) for fused in (True, False)]
    np.testing.assert_array_equal(sums[0].row_nll, sums[1].row_nll)
    assert not launched


def kinds(backbone):
    """Prefixes that the kernels do not know, and what to read them with."""

    def made(**config):
        config = PrefixConfig(**{"init": "random", "length": 5} | config)
        return init_prefix(backbone, config, key=jax.random.key(1)).fold(backbone)

    after = jnp.arange(TOKENS)[None] >= jnp.full((ROWS, 1), 20)
    return {
        "infix": (made(placement="infix"), {"after": after}),
        "lengths by layer": (made(lengths=(5, 2)), {}),
        "gated": (made(gate=True, position_mode="unshifted"), {}),
        "mask": (made(), {"mask": make_batch()["mask"]}),
        "scale by layer": (
            made(),
            {"variant": {"scale_attn_by_inverse_layer_idx": True}},
        ),
        "windows": (
            None,
            {
                "variant": FAMILIES["llama"]
                | {"model_type": "mistral", "sliding_window": 9}
            },
        ),
    }


@pytest.mark.parametrize(
    "kind",
    ["infix", "lengths by layer", "gated", "mask", "scale by layer", "windows"],
)
def test_all_else_is_plain(launched, kind):
    """Bit for bit: what the kernels cannot do is done as without them."""
    prefix, given = kinds(make_backbone(False))[kind]
    found = [forward(fused, prefix, **dict(given)) for fused in (False, True)]
    np.testing.assert_array_equal(*found)
    assert not launched
