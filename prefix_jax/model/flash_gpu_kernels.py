"""The kernels of fused attention on GPUs: what one program of each computes.

A program is there for a stretch of `BLOCK` positions, one head and one row. The arrays
that it is given are one head's, of all positions or of its stretch: queries, keys,
values and slopes [T K] or [BLOCK K], totals and means [T], `flash.Texts` [T].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from prefix_jax.model.flash_common import HIDDEN, LOG2E

BLOCK = 64
"""Positions that a program is there for, and that it passes at once. With"""
WARPS, STAGES = 4, 3
"""this was the fastest of what was tried on an H100 and an H200, for heads of 64."""


def forward_kernel(query, key, value, start, *others, scale, prefix_length):
    """Mixed values of a stretch's queries, and log2 of what their weights sum to."""
    *prefix, mixed, total = others
    number, queries = pl.program_id(0), query[...]

    def see(keys, values, seen, carry):
        summed, peak, weight = carry
        scores = triton.dot(queries, keys.T) * (scale * LOG2E)
        if seen is not None:
            scores = jnp.where(seen, scores, HIDDEN)
        higher = jnp.maximum(peak, scores.max(1))
        weights = jnp.exp2(scores - higher[:, None])
        shrink = jnp.exp2(peak - higher)
        summed = summed * shrink[:, None]
        summed += triton.dot(weights.astype(values.dtype), values)
        return summed, higher, weight * shrink + weights.sum(1)

    carry = (
        jnp.zeros(queries.shape, jnp.float32),
        jnp.full(len(queries), -jnp.inf),
        jnp.zeros(len(queries)),
    )
    carry = _over_prefix(prefix, prefix_length, see, carry)
    summed, peak, weight = _over_keys(number, key, value, start, see, carry)
    mixed[...] = (summed / weight[:, None]).astype(mixed.dtype)
    total[...] = peak + jnp.log2(weight)


def text_kernel(
    query, key, value, slope, total, mean, start, stop, *others, scale, prefix_length
):
    """The gradients of a stretch's keys and values, then of its queries.

    The later a stretch the fewer queries see it and the more keys it sees, so that all
    programs have about the same to do.
    """
    *prefix, gradient = others
    number = pl.program_id(0)
    own = pl.ds(number * BLOCK, BLOCK)
    keys, values = key[own], value[own]
    carry = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(keys.shape, jnp.float32)
    add = functools.partial(
        _add_to_keys, number, query, slope, total, mean, keys, values, start, scale
    )
    grad_keys, grad_values = _over_queries(number, stop, add, carry)
    gradient[:, 1] = (grad_keys * scale).astype(gradient.dtype)
    gradient[:, 2] = grad_values.astype(gradient.dtype)

    queries, slopes = query[own], slope[own]
    totals, means = total[own], mean[own]

    def see(keys, values, seen, summed):
        scores = triton.dot(queries, keys.T) * (scale * LOG2E)
        weights = jnp.exp2(scores - totals[:, None])
        if seen is not None:
            weights = jnp.where(seen, weights, 0.0)
        slope_of_scores = weights * (triton.dot(slopes, values.T) - means[:, None])
        return summed + triton.dot(slope_of_scores.astype(keys.dtype), keys)

    summed = jnp.zeros(queries.shape, jnp.float32)
    summed = _over_prefix(prefix, prefix_length, see, summed)
    summed = _over_keys(number, key, value, start, see, summed)
    gradient[:, 0] = (summed * scale).astype(gradient.dtype)


def prefix_kernel(
    query, slope, total, mean, key, value, grad_key, grad_value, *, scale
):
    """The gradients of a stretch of a prefix, which all queries see."""
    keys, values = key[...], value[...]
    carry = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(keys.shape, jnp.float32)
    add = functools.partial(
        _add_to_keys, None, query, slope, total, mean, keys, values, None, scale
    )
    grad_keys, grad_values = jax.lax.fori_loop(
        0, query.shape[0] // BLOCK, functools.partial(add, masked=False), carry
    )
    grad_key[...] = (grad_keys * scale).astype(grad_key.dtype)
    grad_value[...] = grad_values.astype(grad_value.dtype)


def _over_prefix(prefix, length: int, see: Callable, carry):
    """`see` all positions of the prefix, if there is one; its padding is hidden."""
    if not prefix:
        return carry
    keys, values = prefix
    size = min(BLOCK, keys.shape[0])
    for first in range(0, keys.shape[0], size):
        seen = None
        if first + size > length:
            seen = (first + jnp.arange(size) < length)[None]
        part = pl.ds(first, size)
        carry = see(keys[part], values[part], seen, carry)
    return carry


def _over_keys(diagonal, key, value, start, see: Callable, carry):
    """`see` what the program's queries see: their text up to themselves.

    Where all of them see all keys of a block, nothing is masked.
    """
    position = diagonal * BLOCK + jnp.arange(BLOCK)
    begins = start[pl.ds(diagonal * BLOCK, BLOCK)]
    first, last = begins.min(), begins.max()

    def visit(block, carry, masked: bool):
        part = pl.ds(block * BLOCK, BLOCK)
        seen = None
        if masked:
            keys = block * BLOCK + jnp.arange(BLOCK)[None]
            seen = (begins[:, None] <= keys) & (keys <= position[:, None])
        return see(key[part], value[part], seen, carry)

    masked = functools.partial(visit, masked=True)
    unmasked = functools.partial(visit, masked=False)
    whole = jnp.minimum((last + BLOCK - 1) // BLOCK, diagonal)
    carry = jax.lax.fori_loop(first // BLOCK, whole, masked, carry)
    carry = jax.lax.fori_loop(whole, diagonal, unmasked, carry)
    return masked(diagonal, carry)


def _over_queries(own, stop, add: Callable, carry):
    """`add` what the queries that see some of the program's keys have for them."""
    # Later queries see all of these keys, if they are of the first one's text; those of
    # texts that begin among them see some.
    whole = jnp.maximum(stop[own * BLOCK] // BLOCK, own + 1)
    end = (stop[own * BLOCK + BLOCK - 1] + BLOCK - 1) // BLOCK
    carry = add(own, carry, masked=True)
    carry = jax.lax.fori_loop(
        own + 1, whole, functools.partial(add, masked=False), carry
    )
    return jax.lax.fori_loop(whole, end, functools.partial(add, masked=True), carry)


def _add_to_keys(
    number, query, slope, total, mean, keys, values, start, scale, block, carry, masked
):
    """What a block of queries adds to the gradients of keys and values."""
    grad_keys, grad_values = carry
    part = pl.ds(block * BLOCK, BLOCK)
    queries, slopes = query[part], slope[part]
    scores = triton.dot(keys, queries.T) * (scale * LOG2E)
    weights = jnp.exp2(scores - total[part][None])
    if masked:
        position = block * BLOCK + jnp.arange(BLOCK)[None]
        own = (number * BLOCK + jnp.arange(BLOCK))[:, None]
        seen = (start[part][None] <= own) & (own <= position)
        weights = jnp.where(seen, weights, 0.0)
    grad_values += triton.dot(weights.astype(slopes.dtype), slopes)
    slope_of_scores = weights * (triton.dot(values, slopes.T) - mean[part][None])
    grad_keys += triton.dot(slope_of_scores.astype(queries.dtype), queries)
    return grad_keys, grad_values
