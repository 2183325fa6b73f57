"""What tests of fused attention share: sizes, texts, and each kind of kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from prefix_jax.model import flash_gpu, flash_tpu, flash_tpu_kernels

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


KINDS = ["gpu", "tpu, 128", "tpu, 256"]


def interpreted_kernels(request, monkeypatch):
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
