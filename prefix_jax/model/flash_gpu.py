"""Fused attention on GPUs (Pallas, Triton): how the kernels are launched.

`flash` says what is computed and what each function takes and gives. Of many positions
the kernels compute stretches, for heads and rows that are each their own.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from prefix_jax.model.flash_gpu_kernels import (
    BLOCK,
    STAGES,
    WARPS,
    forward_kernel,
    prefix_kernel,
    text_kernel,
)


def forward(qkv, start, *prefix, scale, prefix_length, interpret=False):
    """Mixed values, and log2 of what the weights of each query sum to."""
    rows, whole, heads, _, width = qkv.shape
    query = pl.BlockSpec(
        (None, BLOCK, None, None, width), lambda i, h, b: (b, i, h, 0, 0)
    )
    return _launch(
        functools.partial(forward_kernel, scale=scale, prefix_length=prefix_length),
        (whole // BLOCK, heads, rows),
        [query, *_of_keys(qkv), _row(whole), *_of_prefix(prefix)],
        [
            pl.BlockSpec((None, BLOCK, None, width), lambda i, h, b: (b, i, h, 0)),
            pl.BlockSpec((None, None, BLOCK), lambda i, h, b: (b, h, i)),
        ],
        [
            jax.ShapeDtypeStruct((rows, whole, heads, width), qkv.dtype),
            jax.ShapeDtypeStruct((rows, heads, whole), jnp.float32),
        ],
        interpret,
    )(qkv, qkv, qkv, start, *prefix)


def text_gradient(
    qkv, slope, total, mean, start, stop, *prefix, scale, prefix_length, interpret=False
):
    """The gradients of queries, keys and values, which lie as these do."""
    rows, whole, heads, _, width = qkv.shape
    own = pl.BlockSpec((None, BLOCK, None, 3, width), lambda i, h, b: (b, i, h, 0, 0))
    return _launch(
        functools.partial(text_kernel, scale=scale, prefix_length=prefix_length),
        (whole // BLOCK, heads, rows),
        [
            _part_of(qkv, 0),
            *_of_keys(qkv),
            *_of_queries(slope),
            _row(whole),
            _row(whole),
            *_of_prefix(prefix),
        ],
        [own],
        [qkv],
        interpret,
    )(qkv, qkv, qkv, slope, total, mean, start, stop, *prefix)


def prefix_gradient(qkv, slope, total, mean, keys, values, *, scale, interpret=False):
    """The gradients that each row has for its prefix, f32."""
    rows = len(qkv)
    number, size, heads, width = keys.shape
    stretch = min(BLOCK, size)
    shape = None, stretch, None, width
    given = pl.BlockSpec(shape, lambda i, h, b: (0 if number == 1 else b, i, h, 0))
    own = pl.BlockSpec(shape, lambda i, h, b: (b, i, h, 0))
    result = jax.ShapeDtypeStruct((rows, size, heads, width), jnp.float32)
    return _launch(
        functools.partial(prefix_kernel, scale=scale),
        (size // stretch, heads, rows),
        [_part_of(qkv, 0), *_of_queries(slope), given, given],
        [own, own],
        [result, result],
        interpret,
    )(qkv, slope, total, mean, keys, values)


# --- what each program reads --------------------------------------------------


def _part_of(qkv, number: int) -> pl.BlockSpec:
    """A head's queries (0), keys (1) or values (2), of all positions."""
    _, length, _, _, width = qkv.shape
    return pl.BlockSpec(
        (None, length, None, None, width), lambda i, h, b: (b, 0, h, number, 0)
    )


def _of_keys(qkv) -> list[pl.BlockSpec]:
    return [_part_of(qkv, 1), _part_of(qkv, 2)]


def _of_queries(slope) -> list[pl.BlockSpec]:
    """A head's slopes, totals and means, of all positions."""
    _, length, _, width = slope.shape
    numbers = pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, 0))
    slopes = pl.BlockSpec((None, length, None, width), lambda i, h, b: (b, 0, h, 0))
    return [slopes, numbers, numbers]


def _of_prefix(prefix) -> list[pl.BlockSpec]:
    """A head's keys and values of the row's prefix, or of the one that rows share."""

    def whole(x):
        number, length, _, width = x.shape
        return pl.BlockSpec(
            (None, length, None, width),
            lambda i, h, b: (0 if number == 1 else b, 0, h, 0),
        )

    return [whole(x) for x in prefix]


def _row(length: int) -> pl.BlockSpec:
    """All positions of [B T]."""
    return pl.BlockSpec((None, length), lambda i, h, b: (b, 0))


def _launch(
    kernel: Callable,
    grid: tuple[int, int, int],
    inputs: Sequence[pl.BlockSpec],
    outputs: Sequence[pl.BlockSpec],
    results: Sequence[Array | jax.ShapeDtypeStruct],
    interpret: bool,
) -> Callable[..., Sequence[Array]]:
    """The kernel over stretches, heads and rows."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=inputs,
        out_specs=outputs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
    )
