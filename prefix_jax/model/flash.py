"""Causal attention with a prefix as fused kernels, for GPUs and TPUs (Pallas).

Scores never reach memory: each program takes a stretch of queries (or of keys, in the
backward pass) past all that it sees, as in FlashAttention-2 (Dao 2023, algorithms 1
and 2). What is ours: prefix and text share one softmax without being concatenated, of
several texts in a row only the stretches that see each other are visited, and on GPUs
queries, keys and values lie as one product with the weights has them, as do their
gradients (on TPUs their positions come last).

`attention.attend` says what is computed; the kernels compute it with products of 16-bit
numbers, summed in f32. `flash_gpu` and `flash_tpu` have them, each the same three
functions: `forward`, `text_gradient` and `prefix_gradient`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefix_jax.model import flash_gpu, flash_tpu
from prefix_jax.model.flash_common import by_rows_and_heads
from prefix_jax.model.flash_gpu_kernels import BLOCK
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
        whole = cls.whole(length)
        if segments is None:
            segments = jnp.zeros((rows, length), jnp.int32)
        pad = [(0, 0), (0, whole - length)]
        segments = jnp.pad(segments, pad, constant_values=-1)
        return cls(segment_starts(segments), segment_stops(segments))

    @staticmethod
    def whole(length: int) -> int:
        """A number of tokens as whole blocks."""
        return -(-length // BLOCK) * BLOCK

    @property
    def padded(self) -> int:
        """T with the padding."""
        return self.start.shape[1]


def fits(dtype: jnp.dtype, width: int) -> bool:
    """Whether the kernels take numbers of this type in heads of width K."""
    return (
        dtype == jnp.bfloat16
        and width >= SMALLEST
        and width == 1 << (width.bit_length() - 1)
    )


def fuses(platform: str, kind: str, capability: str = "") -> bool:
    """Whether the kernels are for such a device.

    That is NVIDIA's GPUs from Ampere on (compute capability "8.0"; AMD's have letters,
    "gfx90a") and TPUs from v4 on (`kind` is "TPU v4").
    """
    if platform == "tpu":
        return not kind.startswith(("TPU v2", "TPU v3"))
    return capability.replace(".", "").isdigit() and float(capability) >= 8


def flash_attention(
    qkv: Float[Array, "B T H 3 K"],
    prefix: tuple[Float[Array, "N P H K"], Float[Array, "N P H K"]] | None,
    texts: Texts,
    scale: float,
    row_gradients: tuple[Float[Array, "B P H K"], Float[Array, "B P H K"]]
    | None = None,
) -> Float[Array, "B T H K"]:
    """Each token attends to all of its prefix, and to its text up to itself.

    T is that of the padded `texts`. Of N prefixes B/N neighbouring rows share each;
    they may be f32, and are rounded to the type of `qkv`. Has a gradient in reverse
    mode, of first order: a prefix's is summed over rows in f32, or, where
    `row_gradients` are given, is that of these, row by row. Devices that have some of
    the rows or of the heads compute those.
    """
    if prefix is not None and 1 < len(prefix[0]) < len(qkv):
        share = len(qkv) // len(prefix[0])
        prefix = prefix[0].repeat(share, 0), prefix[1].repeat(share, 0)
    return _attention(qkv, prefix, row_gradients, texts, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(qkv, prefix, row_gradients, texts, scale):
    del row_gradients
    return _forward(qkv, prefix, texts, scale)[0]


def _forward_rule(qkv, prefix, row_gradients, texts, scale):
    mixed, total = _forward(qkv, prefix, texts, scale)
    kind = None if row_gradients is None else jnp.zeros(0, row_gradients[0].dtype)
    return mixed, (qkv, prefix, kind, texts, mixed, total)


def _backward_rule(scale, kept, slope):
    qkv, prefix, sink, texts, mixed, total = kept
    # The mean slope of a query's weights, which the softmax's gradient takes off.
    mean = jnp.einsum(
        "bthk,bthk->bht", slope, mixed, preferred_element_type=jnp.float32
    )
    given = qkv, slope, total, mean
    gradient = _text_gradient(*given, prefix, texts, scale)
    if prefix is None:
        return gradient, None, None, None
    by_row = _prefix_gradient(*given, prefix, scale)
    if sink is not None:
        by_row = tuple(x.astype(sink.dtype) for x in by_row)
        return gradient, jax.tree.map(jnp.zeros_like, prefix), by_row, None
    if len(prefix[0]) == 1:
        by_row = [x.sum(0, keepdims=True) for x in by_row]
    return gradient, tuple(x.astype(prefix[0].dtype) for x in by_row), None, None


_attention.defvjp(_forward_rule, _backward_rule)


def _forward(qkv, prefix, texts, scale):
    """Mixed values, and log2 of what each query's weights sum to, f32 [B H T]."""
    kept, names, length = _padded(prefix, qkv)
    local = _of_device("forward", scale=scale, prefix_length=length)
    run = by_rows_and_heads(local, ["bthjk", "bt", *names], ["bthk", "bht"])
    return run(qkv, texts.start, *kept)


def _text_gradient(qkv, slope, total, mean, prefix, texts, scale):
    """The gradient of queries, keys and values: it lies as they do."""
    kept, names, length = _padded(prefix, qkv)
    local = _of_device("text_gradient", scale=scale, prefix_length=length)
    numbers = ["bht", "bht", "bt", "bt"]
    run = by_rows_and_heads(local, ["bthjk", "bthk", *numbers, *names], ["bthjk"])
    return run(qkv, slope, total, mean, *texts, *kept)[0]


def _prefix_gradient(qkv, slope, total, mean, prefix, scale):
    """The gradients that each row has for its prefix, f32."""
    kept, names, length = _padded(prefix, qkv)
    local = _of_device("prefix_gradient", scale=scale)
    given = ["bthjk", "bthk", "bht", "bht", *names]
    run = by_rows_and_heads(local, given, ["bphk", "bphk"])
    return [x[:, :length] for x in run(qkv, slope, total, mean, *kept)]


def _of_device(name: str, **how) -> Callable[..., Sequence[Array]]:
    """The function of this name for the devices that a program is compiled for."""
    gpu = functools.partial(getattr(flash_gpu, name), **how)
    tpu = functools.partial(getattr(flash_tpu, name), **how)
    interpreted = functools.partial(gpu, interpret=True)  # for tests

    def run(*arguments) -> Sequence[Array]:
        platform = jax.lax.platform_dependent
        return platform(*arguments, cuda=gpu, tpu=tpu, default=interpreted)

    return run


def _padded(prefix, qkv):
    """A prefix of a length that blocks divide, its axes' names, and its real length.

    It has the type of `qkv`.
    """
    if prefix is None:
        return (), (), 0
    number, length = prefix[0].shape[:2]
    size = -(-length // BLOCK) * BLOCK
    if length < BLOCK:  # sides of a block are powers of two
        size = max(SMALLEST, 1 << (length - 1).bit_length())
    pad = [(0, 0), (0, size - length), (0, 0), (0, 0)]
    name = "bphk" if number == len(qkv) else "nphk"
    return tuple(jnp.pad(x.astype(qkv.dtype), pad) for x in prefix), (name,) * 2, length
