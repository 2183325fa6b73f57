"""Fused attention on TPUs (Pallas, Mosaic): how the kernels are launched.

`flash` says what is computed, and what each function takes and gives. The positions of
a text come last in the arrays of the kernels, so that of heads of 64 no lane of a
register is idle.

Splash attention, jax's own for TPUs, has no gradient through the sums by which a prefix
and a text are merged: the prefix would have to be copied in front of every row's keys.
And of texts that do not see each other it computes the scores, to hide them.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from prefix_jax.model.flash_tpu_kernels import (
    forward_kernel,
    prefix_kernel,
    text_kernel,
)

LANES = 128
"""Positions beside each other in a register."""
BLOCK = 256
"""Positions that a program is there for, and that it passes at once; `LANES` where a
row has few more. Not measured: no TPU was at hand."""


def forward(qkv, start, *prefix, scale, prefix_length, interpret=False):
    """Mixed values, and log2 of what the weights of each query sum to."""
    rows, length, heads, _, width = qkv.shape
    qkv, start, _ = _positions_last(qkv, start)
    whole, size = qkv.shape[-1], _block(qkv)
    mixed, total = _launch(
        functools.partial(forward_kernel, scale=scale, prefix_length=prefix_length),
        (rows, heads, whole // size),
        [_part(qkv, 0, size), _part(qkv, 1), _part(qkv, 2), _row(whole)],
        [
            pl.BlockSpec((None, None, width, size), lambda b, h, i, _: (b, h, 0, i)),
            pl.BlockSpec((None, None, 1, size), lambda b, h, i, _: (b, h, 0, i)),
        ],
        [
            jax.ShapeDtypeStruct((rows, heads, width, whole), qkv.dtype),
            jax.ShapeDtypeStruct((rows, heads, 1, whole), jnp.float32),
        ],
        prefix,
        interpret,
    )(_bounds(start, None, size), qkv, qkv, qkv, start)
    return mixed.transpose(0, 3, 1, 2)[:, :length], total[:, :, 0, :length]


def text_gradient(
    qkv, slope, total, mean, start, stop, *prefix, scale, prefix_length, interpret=False
):
    """The gradients of queries, keys and values, which lie as these do."""
    rows, length, heads, _, width = qkv.shape
    qkv, start, stop = _positions_last(qkv, start, stop)
    whole, size = qkv.shape[-1], _block(qkv)
    [gradient] = _launch(
        functools.partial(text_kernel, scale=scale, prefix_length=prefix_length),
        (rows, heads, whole // size),
        [*(_part(qkv, i) for i in range(3)), *_of_queries(qkv), _row(whole)],
        [
            pl.BlockSpec(
                (None, None, 3, width, size), lambda b, h, i, _: (b, h, 0, 0, i)
            )
        ],
        [qkv],
        prefix,
        interpret,
    )(
        _bounds(start, stop, size),
        *(qkv, qkv, qkv),
        *_queries_last(whole, slope, total, mean),
        start,
    )
    return (gradient.transpose(0, 4, 1, 2, 3)[:, :length],)


def prefix_gradient(qkv, slope, total, mean, keys, values, *, scale, interpret=False):
    """The gradients that each row has for its prefix, f32."""
    rows, _, heads, _, width = qkv.shape
    qkv, _, _ = _positions_last(qkv)
    size = _block(qkv)
    shape = rows, heads, keys.shape[1], width
    results = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2
    gradients = _launch(
        functools.partial(prefix_kernel, scale=scale, size=size),
        (rows, heads, 1),
        [_part(qkv, 0), *_of_queries(qkv)],
        [_of_prefix(x) for x in results],
        results,
        (keys, values),
        interpret,
    )(
        jnp.zeros(1, jnp.int32),  # bounds, of which it needs none
        qkv,
        *_queries_last(qkv.shape[-1], slope, total, mean),
    )
    return tuple(x.swapaxes(1, 2) for x in gradients)


# --- what is given to programs ------------------------------------------------


def _bounds(start, stop, size: int) -> Int[Array, "_"]:
    """For each row, kind and stretch, a block:

    0: the first that its queries see; 1: from which on all of them see all keys; 2: the
    first of queries that need a mask for its keys; 3: behind the last that sees any
    (both 0 without `stop`).
    """
    start = start[:, 0]
    own = jnp.arange(start.shape[1] // size)
    first, last = start[:, ::size], start[:, size - 1 :: size]
    whole = jnp.minimum(pl.cdiv(last, size), own)
    same = end = jnp.zeros_like(whole)
    if stop is not None:
        same = jnp.maximum(stop[:, 0, ::size] // size, own + 1)
        end = pl.cdiv(stop[:, 0, size - 1 :: size], size)
    return jnp.stack([first // size, whole, same, end], 1).reshape(-1)


def _positions_last(qkv, start=None, stop=None):
    """[B T H 3 K] and [B T] as [B H 3 K T] and [B 1 T], with whole blocks.

    Padding is a text of its own, behind the others.
    """
    length = qkv.shape[1]
    size = LANES if length <= LANES else BLOCK
    more = -length % size
    qkv = jnp.pad(qkv.transpose(0, 2, 3, 4, 1), [(0, 0)] * 4 + [(0, more)])
    if start is not None:
        start = jnp.pad(start, [(0, 0), (0, more)], constant_values=length)[:, None]
    if stop is not None:
        end = length + more
        stop = jnp.pad(stop, [(0, 0), (0, more)], constant_values=end)[:, None]
    return qkv, start, stop


def _block(qkv) -> int:
    return min(BLOCK, qkv.shape[-1])


def _queries_last(whole: int, slope, total, mean):
    """[B T H K] and two [B H T] as [B H K T] and [B H 1 T], zeros at the end."""
    slope = slope.transpose(0, 2, 3, 1)
    pad = [(0, 0)] * 3 + [(0, whole - slope.shape[-1])]
    return tuple(jnp.pad(x, pad) for x in (slope, total[:, :, None], mean[:, :, None]))


def _part(qkv, number: int, size: int | None = None) -> pl.BlockSpec:
    """A head's queries (0), keys (1) or values (2): all, or the program's stretch."""
    shape = (None, None, None, qkv.shape[3], size or qkv.shape[4])
    return pl.BlockSpec(shape, lambda b, h, i, _: (b, h, number, 0, i if size else 0))


def _of_queries(qkv) -> list[pl.BlockSpec]:
    """A head's slopes, totals and means, of all positions."""
    width, whole = qkv.shape[3:]
    return [
        pl.BlockSpec((None, None, size, whole), lambda b, h, i, _: (b, h, 0, 0))
        for size in (width, 1, 1)
    ]


def _row(whole: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, 1, whole), lambda b, h, i, _: (b, 0, 0))


def _of_prefix(x) -> pl.BlockSpec:
    """A head's part [S K] of [N H S K]."""
    number, _, length, width = x.shape
    return pl.BlockSpec(
        (None, None, length, width),
        lambda b, h, i, _: (0 if number == 1 else b, h, 0, 0),
    )


def _launch(
    kernel: Callable,
    grid: tuple[int, int, int],
    inputs: Sequence[pl.BlockSpec],
    outputs: Sequence[pl.BlockSpec],
    results: Sequence[Array | jax.ShapeDtypeStruct],
    prefix: Sequence[Array],
    interpret: bool,
) -> Callable[..., Sequence[Array]]:
    """The kernel over rows, heads and stretches; the prefix is given last."""
    prefix = [x.swapaxes(1, 2) for x in prefix]
    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[*inputs, *map(_of_prefix, prefix)],
            out_specs=outputs,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        interpret=interpret,
    )
    return lambda *arguments: call(*arguments, *prefix)
