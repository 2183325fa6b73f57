"""Causal attention with a prefix as fused kernels, for GPUs (Pallas, Triton).

Scores never reach memory: each program takes a stretch of queries (or of keys, in the
backward pass) past all that it sees, as in FlashAttention-2 (Dao 2023, algorithms 1
and 2). What is ours: prefix and text share one softmax without being concatenated, of
several texts in a row only the stretches that see each other are visited, and queries,
keys and values lie as one product with the weights has them, as do their gradients.

`attention.attend` says what is computed; the kernels compute it with products of 16-bit
numbers, summed in f32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from prefix_jax.model.flash_kernels import (
    BLOCK,
    STAGES,
    WARPS,
    forward_kernel,
    prefix_kernel,
    text_kernel,
)
from prefix_jax.model.segments import segment_starts, segment_stops

SMALLEST = 16
"""Rows and columns of the smallest product that tensor cores take."""


class Texts(NamedTuple):
    """Where the text of each token begins and ends, T padded to a multiple of `BLOCK`.

    Padding is a text of its own, behind the others.
    """

    start: Int[Array, "B T"]
    stop: Int[Array, "B T"]

    @classmethod
    def of(cls, rows: int, length: int, segments: Int[Array, "B T"] | None) -> "Texts":
        """Of rows packed with `segments`; None: each row is one text."""
        whole = -(-length // BLOCK) * BLOCK
        if segments is None:
            segments = jnp.zeros((rows, length), jnp.int32)
        pad = [(0, 0), (0, whole - length)]
        segments = jnp.pad(segments, pad, constant_values=-1)
        return cls(segment_starts(segments), segment_stops(segments))

    @property
    def padded(self) -> int:
        """T with the padding."""
        return self.start.shape[1]


def fits(dtype: jnp.dtype, width: int) -> bool:
    """Whether the kernels take numbers of this type in heads of width K."""
    return (
        dtype in (jnp.bfloat16, jnp.float16)
        and width >= SMALLEST
        and width == 1 << (width.bit_length() - 1)
    )


def fuses(capability: str) -> bool:
    """Whether the kernels are for devices of this compute capability.

    That is NVIDIA's GPUs from Ampere on ("8.0"). AMD's have letters ("gfx90a").
    """
    return capability.replace(".", "").isdigit() and float(capability) >= 8


def flash_attention(
    qkv: Float[Array, "B T H 3 K"],
    prefix: tuple[Float[Array, "N P H K"], Float[Array, "N P H K"]] | None,
    texts: Texts,
    scale: float,
) -> Float[Array, "B T H K"]:
    """Each token attends to all of its prefix, and to its text up to itself.

    T is that of the padded `texts`. Of N prefixes B/N neighbouring rows share each. Has
    a gradient in reverse mode, of first order. Devices that have some of the rows or of
    the heads compute those.
    """
    if prefix is not None and 1 < len(prefix[0]) < len(qkv):
        share = len(qkv) // len(prefix[0])
        prefix = prefix[0].repeat(share, 0), prefix[1].repeat(share, 0)
    return _attention(qkv, prefix, texts, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(qkv, prefix, texts, scale):
    return _forward(qkv, prefix, texts, scale)[0]


def _forward_rule(qkv, prefix, texts, scale):
    mixed, total = _forward(qkv, prefix, texts, scale)
    return mixed, (qkv, prefix, texts, mixed, total)


def _backward_rule(scale, kept, slope):
    qkv, prefix, texts, mixed, total = kept
    # The mean slope of a query's weights, which the softmax's gradient takes off.
    mean = jnp.einsum(
        "bthk,bthk->bht", slope, mixed, preferred_element_type=jnp.float32
    )
    given = qkv, slope, total, mean
    gradient = _text_gradient(*given, prefix, texts, scale)
    if prefix is not None:
        prefix = _prefix_gradient(*given, prefix, scale)
    return gradient, prefix, None


_attention.defvjp(_forward_rule, _backward_rule)


def _forward(qkv, prefix, texts, scale):
    """Mixed values, and log2 of what each query's weights sum to, f32 [B H T]."""
    kept, names, length = _padded(prefix, len(qkv))

    def local(qkv, start, *prefix):
        rows, whole, heads, _, width = qkv.shape
        query = pl.BlockSpec(
            (None, BLOCK, None, None, width), lambda i, h, b: (b, i, h, 0, 0)
        )
        return _launch(
            functools.partial(forward_kernel, scale=scale, prefix_length=length),
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
        )(qkv, qkv, qkv, start, *prefix)

    run = _by_rows_and_heads(local, ["bthjk", "bt", *names], ["bthk", "bht"])
    return run(qkv, texts.start, *kept)


def _text_gradient(qkv, slope, total, mean, prefix, texts, scale):
    """The gradient of queries, keys and values: it lies as they do."""
    kept, names, length = _padded(prefix, len(qkv))

    def local(qkv, slope, total, mean, start, stop, *prefix):
        rows, whole, heads, _, width = qkv.shape
        own = pl.BlockSpec(
            (None, BLOCK, None, 3, width), lambda i, h, b: (b, i, h, 0, 0)
        )
        return _launch(
            functools.partial(text_kernel, scale=scale, prefix_length=length),
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
        )(qkv, qkv, qkv, slope, total, mean, start, stop, *prefix)

    numbers = ["bht", "bht", "bt", "bt"]
    run = _by_rows_and_heads(local, ["bthjk", "bthk", *numbers, *names], ["bthjk"])
    return run(qkv, slope, total, mean, *texts, *kept)[0]


def _prefix_gradient(qkv, slope, total, mean, prefix, scale):
    """A prefix that rows share has the sum of their gradients, summed in f32."""
    number, length = prefix[0].shape[:2]
    kept, _, _ = _padded(prefix, len(qkv))
    each = [jnp.broadcast_to(x, (len(qkv), *x.shape[1:])) for x in kept]

    def local(qkv, slope, total, mean, keys, values):
        rows, size, heads, width = keys.shape
        stretch = min(BLOCK, size)
        own = pl.BlockSpec((None, stretch, None, width), lambda i, h, b: (b, i, h, 0))
        return _launch(
            functools.partial(prefix_kernel, scale=scale),
            (size // stretch, heads, rows),
            [_part_of(qkv, 0), *_of_queries(slope), own, own],
            [own, own],
            [keys, values],
        )(qkv, slope, total, mean, keys, values)

    given = ["bthjk", "bthk", "bht", "bht", "bphk", "bphk"]
    run = _by_rows_and_heads(local, given, ["bphk", "bphk"])
    gradients = [x[:, :length] for x in run(qkv, slope, total, mean, *each)]
    if number == 1:
        gradients = [
            x.sum(0, keepdims=True, dtype=jnp.float32).astype(x.dtype)
            for x in gradients
        ]
    return tuple(gradients)


# --- how kernels are launched, and what each program reads --------------------


def _padded(prefix, rows: int):
    """A prefix of a length that blocks divide, its axes' names, and its real length."""
    if prefix is None:
        return (), (), 0
    number, length = prefix[0].shape[:2]
    size = -(-length // BLOCK) * BLOCK
    if length < BLOCK:  # sides of a block are powers of two
        size = max(SMALLEST, 1 << (length - 1).bit_length())
    pad = [(0, 0), (0, size - length), (0, 0), (0, 0)]
    name = "bphk" if number == rows else "nphk"
    return tuple(jnp.pad(x, pad) for x in prefix), (name, name), length


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
) -> Callable[..., Sequence[Array]]:
    """The kernel over stretches, heads and rows, compiled on GPUs."""

    def call(*arguments, interpret: bool):
        return pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=inputs,
            out_specs=outputs,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            interpret=interpret,
        )(*arguments)

    compiled = functools.partial(call, interpret=False)
    interpreted = functools.partial(call, interpret=True)

    def run(*arguments) -> Sequence[Array]:
        platform = jax.lax.platform_dependent
        return platform(*arguments, cuda=compiled, default=interpreted)

    return run


def _by_rows_and_heads(
    function: Callable[..., Sequence[Array]],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Callable[..., Sequence[Array]]:
    """The function of arrays whose rows (b) and heads (h) it takes each for itself.

    Each word names an array's axes, a letter each. Devices that have some rows or heads
    compute those, where XLA would gather them all; `vmap` gives it more rows.
    """

    def placed(mesh, rows, heads, words):
        where = {"b": rows, "h": heads}
        return tuple(
            NamedSharding(mesh, PartitionSpec(*map(where.get, word))) for word in words
        )

    def partition(mesh, arguments, results):
        rows, _, heads, *_ = arguments[0].sharding.spec
        given, made = (placed(mesh, rows, heads, x) for x in (inputs, outputs))
        return mesh, lambda *local: tuple(function(*local)), made, given

    def written(words):
        return ", ".join(" ".join(word) for word in words)

    over_devices = custom_partitioning(lambda *arguments: tuple(function(*arguments)))
    over_devices.def_partition(
        partition, sharding_rule=f"{written(inputs)} -> {written(outputs)}"
    )
    run = custom_vmap(lambda *arguments: over_devices(*arguments))

    @run.def_vmap
    def more_rows(size, batched, *arguments):
        # A prefix that all rows share is each row's own beside others.
        words = [word.replace("n", "b") for word in inputs]
        rows = arguments[0].shape[1 if batched[0] else 0]

        def merged(x, has):
            x = x if has else jnp.broadcast_to(x, (size, *x.shape))
            x = jnp.broadcast_to(x, (size, rows, *x.shape[2:]))
            return x.reshape(size * rows, *x.shape[2:])

        given = [merged(x, has) for x, has in zip(arguments, batched, strict=True)]
        made = _by_rows_and_heads(function, words, outputs)(*given)
        parted = tuple(x.reshape(size, rows, *x.shape[1:]) for x in made)
        return parted, (True,) * len(parted)

    return run
