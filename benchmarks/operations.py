"""Operations that a training step needs, and those that a machine reaches."""

import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

import prefix_jax as pj
from prefix_jax.learning.split import TOP_LAYERS

Method = Literal["prefix", "top2", "full"]

SIZES = (1024, 2048, 4096)
"""Sides of the square matrices whose products show what the machine reaches,"""
LARGEST, QUEUED = 8192, 10
"""one more for accelerators, whose products are also queued, so many at a time."""


def operations(
    shape: pj.GPT2Config,
    lengths: Int[np.ndarray, " rows"],
    targets: float,
    prefix_length: int,
    method: Method = "prefix",
) -> dict[str, float]:
    """Useful floating-point operations of one average row.

    `lengths` are the rows' tokens, `targets` those that carry loss in the average row.
    A matrix of n numbers costs 2n a token forward, 2n for the gradient of its input,
    where backpropagation passes it, and 2n for its own, where it is trained: 4n all in
    all with a prefix, 6n in full fine-tuning. Of the matrices' operations those that no
    result needs are not counted: all of a row's last token; of another one without
    loss, in the last layer, more than its key and value; the gradient of what the
    lowest layer reads, unless something below is trained. A token's attention reads the
    prefix and the tokens up to itself, in two products forward and four backward; it is
    counted in all layers that backpropagation passes.
    """
    d, layers = shape.n_embd, shape.n_layer
    qkv, key_and_value = 3 * d * d, 2 * d * d
    matrices = 4 * d * d + 2 * d * shape.mlp_width
    lengths = lengths - 1
    passed = TOP_LAYERS if method == "top2" else layers
    trained = 0 if method == "prefix" else passed
    tokens = float(lengths.mean())
    seen = float((lengths * prefix_length + lengths * (lengths + 1) / 2).mean())
    without_loss = tokens - targets

    def through(top: int) -> float:
        """The top layers forward."""
        return matrices * tokens * top - (matrices - key_and_value) * without_loss

    inputs = through(passed)
    if method != "full":
        inputs -= qkv * tokens
        if passed == 1:
            inputs += (qkv - key_and_value) * without_loss
    # The tied embedding is trained in full fine-tuning only.
    head = 2 + 2 + (2 if method == "full" else 0)
    parts = {
        "layers": 2 * (through(layers) + inputs + (through(trained) if trained else 0)),
        "head": head * shape.vocab_size * d * targets,
        "attention": 4 * d * (layers + 2 * passed) * seen,
    }
    return {**parts, "in all": sum(parts.values()), "tokens": tokens + 1}


def ceiling(dtype: str) -> float:
    """Operations per second of the best of a few matrix products."""
    best, on_cpu = 0.0, jax.default_backend() == "cpu"
    times = 1 if on_cpu else QUEUED
    for size in SIZES if on_cpu else (*SIZES, LARGEST):
        # Of equal numbers a GPU makes products faster than of any others.
        x = jax.random.normal(jax.random.key(0), (size, size), dtype)
        multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
        multiply(x).block_until_ready()
        for _ in range(3):
            started = time.perf_counter()
            jax.block_until_ready([multiply(x) for _ in range(times)])
            took = time.perf_counter() - started
            best = max(best, times * 2 * size**3 / took)
    return best
