"""Backbones with fused attention: loss and gradient, devices, and what is not fused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused import HEADS, KINDS, WIDTH, assert_near, interpreted_kernels, segments_of

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
from prefix_jax.model import flash, flash_gpu
from prefix_jax.model.families import random_backbone
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig

kernels = pytest.fixture(params=KINDS)(interpreted_kernels)

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
    for fused, stacks in ((False, [2]), (True, [2]), (True, [1, 1])):
        backbone = make_backbone(fused, **FAMILIES[family]).parted(*stacks)
        prefix = init_prefix(
            backbone, PrefixConfig(init="random", length=5), key=jax.random.key(1)
        )

        def loss(prefix, backbone=backbone):
            return loss_sums(backbone, prefix.fold(backbone), make_batch()).smoothed

        found.append(jax.jit(jax.value_and_grad(loss))(prefix))
    # Both round to bf16 after each layer, at different places: the difference is
    # twice that of one from f32, and grows on the way back through the layers.
    (one, flat), *fused = (
        (loss, np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))
        for loss, gradient in found
    )
    for other, fused_flat in fused:
        np.testing.assert_allclose(one, other, rtol=1e-3)
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
