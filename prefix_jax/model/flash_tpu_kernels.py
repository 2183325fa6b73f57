"""The kernels of fused attention on TPUs: what one program of each computes.

A program is there for a row, a head and a stretch of positions. These lie along the
lanes of registers: queries, keys, values and slopes are [K T], or [K S] of a stretch;
scores [keys queries]; what there is once for a query [1 T]. A prefix is [P K].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from prefix_jax.model.flash_common import HIDDEN, LOG2E


def forward_kernel(bounds, query, key, value, start, *others, scale, prefix_length):
    """Mixed values of a stretch's queries, and log2 of what their weights sum to."""
    *prefix, mixed, total = others
    queries = query[...]
    size = queries.shape[1]

    def see(scores, mix, carry):
        summed, peak, weight = carry
        higher = jnp.maximum(peak, scores.max(0, keepdims=True))
        weights = jnp.exp2(scores - higher)
        shrink = jnp.exp2(peak - higher)
        summed = summed * shrink + mix(weights.astype(queries.dtype))
        return summed, higher, weight * shrink + weights.sum(0, keepdims=True)

    carry = (
        jnp.zeros(queries.shape, jnp.float32),
        jnp.full((1, size), -jnp.inf),
        jnp.zeros((1, size)),
    )
    if prefix:
        keys, values = (x[...] for x in prefix)
        scores = _dot(keys, queries) * (scale * LOG2E)
        real = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0) < prefix_length
        scores = jnp.where(real, scores, HIDDEN)
        carry = see(scores, lambda weights: _dot(values.T, weights), carry)

    def visit(part, seen, carry):
        scores = _dot(key[:, part].T, queries) * (scale * LOG2E)
        if seen is not None:
            scores = jnp.where(seen, scores, HIDDEN)
        return see(scores, lambda weights: _dot(value[:, part], weights), carry)

    summed, _, weight = carry = _over_keys(bounds, start, size, visit, carry)
    mixed[...] = (summed / weight).astype(mixed.dtype)
    total[...] = carry[1] + jnp.log2(weight)


def text_kernel(
    bounds,
    query,
    key,
    value,
    slope,
    total,
    mean,
    start,
    *others,
    scale,
    prefix_length,
):
    """The gradients of a stretch's keys and values, then of its queries.

    The later a stretch the fewer queries see it and the more keys it sees, so that all
    programs have about the same to do.
    """
    *prefix, gradient = others
    size = gradient.shape[-1]
    own = _stretch(pl.program_id(2), size)
    keys, values = key[:, own].T, value[:, own].T

    def add(part, seen, carry):
        return _add_to_keys(
            keys, values, seen, query, slope, total, mean, scale, part, carry
        )

    carry = (jnp.zeros((keys.shape[1], size), jnp.float32),) * 2
    grad_keys, grad_values = _over_queries(bounds, start, size, add, carry)
    gradient[1] = (grad_keys * scale).astype(gradient.dtype)
    gradient[2] = grad_values.astype(gradient.dtype)

    queries, slopes = query[:, own], slope[:, own]
    totals, means = total[:, own], mean[:, own]

    def slope_of_scores(keys, values, seen):
        """Of keys and values [S K]."""
        scores = _dot(keys, queries) * (scale * LOG2E)
        weights = jnp.exp2(scores - totals)
        if seen is not None:
            weights = jnp.where(seen, weights, 0.0)
        return (weights * (_dot(values, slopes) - means)).astype(queries.dtype)

    summed = jnp.zeros(queries.shape, jnp.float32)
    if prefix:
        keys, values = (x[...] for x in prefix)
        shape = len(keys), size
        real = jax.lax.broadcasted_iota(jnp.int32, shape, 0) < prefix_length
        summed += _dot(keys.T, slope_of_scores(keys, values, real))

    def visit(part, seen, summed):
        keys, values = key[:, part], value[:, part]
        return summed + _dot(keys, slope_of_scores(keys.T, values.T, seen))

    summed = _over_keys(bounds, start, size, visit, summed)
    gradient[0] = (summed * scale).astype(gradient.dtype)


def prefix_kernel(
    _, query, slope, total, mean, key, value, grad_key, grad_value, *, scale, size
):
    """The gradients of a prefix, which all queries see."""
    keys, values = key[...], value[...]

    def visit(number, carry):
        part = _stretch(number, size)
        return _add_to_keys(
            keys, values, None, query, slope, total, mean, scale, part, carry
        )

    carry = (jnp.zeros(keys.shape[::-1], jnp.float32),) * 2
    number = query.shape[1] // size
    grad_keys, grad_values = jax.lax.fori_loop(0, number, visit, carry)
    grad_key[...] = (grad_keys * scale).T.astype(grad_key.dtype)
    grad_value[...] = grad_values.T.astype(grad_value.dtype)


def _add_to_keys(keys, values, seen, query, slope, total, mean, scale, part, carry):
    """What a block of queries adds to the gradients [K S] of keys and values [S K]."""
    grad_keys, grad_values = carry
    queries, slopes = query[:, part], slope[:, part]
    weights = jnp.exp2(_dot(keys, queries) * (scale * LOG2E) - total[:, part])
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    grad_values += _dot(slopes, weights.astype(slopes.dtype).T)
    slope_of_scores = weights * (_dot(values, slopes) - mean[:, part])
    grad_keys += _dot(queries, slope_of_scores.astype(queries.dtype).T)
    return grad_keys, grad_values


def _dot(x, y):
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _over_keys(bounds, start, size: int, visit: Callable, carry):
    """`visit` what a program's queries see: their text up to themselves.

    Where all of them see all keys of a block, nothing is masked.
    """
    diagonal = pl.program_id(2)
    begins = start[:, _stretch(diagonal, size)]
    first, whole = (_bound(bounds, kind) for kind in (0, 1))

    def masked(block, carry):
        return visit(_stretch(block, size), _seen(begins, block, diagonal), carry)

    def unmasked(block, carry):
        return visit(_stretch(block, size), None, carry)

    carry = jax.lax.fori_loop(first, whole, masked, carry)
    carry = jax.lax.fori_loop(whole, diagonal, unmasked, carry)
    return masked(diagonal, carry)


def _over_queries(bounds, start, size: int, add: Callable, carry):
    """`add` what the queries that see some of a program's keys have for them."""
    own = pl.program_id(2)
    # Later queries see all of these keys, if they are of the first one's text; those of
    # texts that begin among them see some.
    whole, end = (_bound(bounds, kind) for kind in (2, 3))

    def masked(block, carry):
        part = _stretch(block, size)
        return add(part, _seen(start[:, part], own, block), carry)

    def unmasked(block, carry):
        return add(_stretch(block, size), None, carry)

    carry = masked(own, carry)
    carry = jax.lax.fori_loop(own + 1, whole, unmasked, carry)
    return jax.lax.fori_loop(whole, end, masked, carry)


def _seen(begins: Int[Array, "1 S"], keys, queries):
    """Which of a block's keys [S 1] each query [1 S] of a block sees."""
    size = begins.shape[1]
    key = keys * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    query = queries * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return (begins <= key) & (key <= query)


def _stretch(number, size: int):
    return pl.ds(pl.multiple_of(number * size, size), size)


def _bound(bounds, kind: int):
    """Of `flash_tpu._bounds`, for the program's row and stretch."""
    row, number, count = pl.program_id(0), pl.program_id(2), pl.num_programs(2)
    return bounds[(row * 4 + kind) * count + number]
