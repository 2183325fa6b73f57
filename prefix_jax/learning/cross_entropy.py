"""Cross-entropy of target tokens; the logits [B T V] never exist.

A vocabulary is some hundred times as wide as a head: logits and their gradient are
most of a small batch's memory. Here the target tokens of all rows that a device has are
moved to the front, and a loop over chunks of them makes logits, loss and, where they
will be asked for, gradients. So it may be with what comes before the logits (`Finish`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from prefix_jax.learning.split import merge
from prefix_jax.model.attention import precision
from prefix_jax.model.layers import head_logits
from prefix_jax.model.parted import devices_of_rows
from prefix_jax.model.passes import Finish, finished

CHUNKS = 8
"""A batch's tokens are cut into so many chunks,"""
FULL_PRODUCT = 128
"""or fewer, where matrix products of fewer rows than this would be slow."""


class _Chunk(NamedTuple):
    """Neighbouring tokens of each device, and the place of their first among all."""

    first: Int[Array, ""]
    hidden: Float[Array, "G C D"]
    labels: Int[Array, "G C"]
    weights: Float[Array, "G C"]

    def put(self, whole: Array, part: Array) -> Array:
        """A value of each token written among those of all."""
        return jax.lax.dynamic_update_slice_in_dim(whole, part, self.first, 1)


class _Chunks(NamedTuple):
    """Tokens with those that carry loss in front: the S of each of G devices, which
    have B/G rows of T, and P - S more, so that each chunk lies within them."""

    hidden: Float[Array, "G P D"]
    labels: Int[Array, "G P"]
    weights: Float[Array, "G P"]
    order: Int[Array, "G S"]
    """Where they came from."""
    quarter: int
    """Tokens of a quarter of a chunk."""
    quarters: Int[Array, ""]
    """How many of them have a token that carries loss."""

    def loop(self, add: Callable[[_Chunk, PyTree], PyTree], start: PyTree) -> PyTree:
        """`add` over all chunks with a token that carries loss.

        What is left after whole ones is one more product, of a quarter, a half or a
        whole chunk. Where products are bound by their operations, as on a CPU from some
        30 rows on, the padding so saved is time saved: 2 to 4 % of a step of GPT-2 124M
        with 10 of E2E's examples on two cores.
        """
        whole = (self.quarters + 1) // 4  # three quarters are done as a whole one
        left = self.quarters - 4 * whole
        carry = start
        for size, begin, number in (
            (4, 0, whole),
            (2, 4 * whole, (left == 2).astype(jnp.int32)),
            (1, 4 * whole, (left == 1).astype(jnp.int32)),
        ):

            def body(index, carry, size=size, begin=begin):
                first = (begin + index * size) * self.quarter

                def cut(x):
                    length = size * self.quarter
                    return jax.lax.dynamic_slice_in_dim(x, first, length, 1)

                tokens = cut(self.hidden), cut(self.labels), cut(self.weights)
                return add(_Chunk(first, *tokens), carry)

            carry = jax.lax.fori_loop(0, number, body, carry)
        return carry

    def back(self, x, rows: int):
        """What there is of each token, where it came from: [B T ...]."""
        index = jnp.argsort(self.order, axis=-1)
        x = jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)
        return x.reshape(rows, index.size // max(1, rows), *x.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    label_smoothing: float,
    finish: Finish | None = None,
) -> tuple[Float[Array, ""], Float[Array, " B"]]:
    """The summed objective, and each row's negative log-likelihood, nats.

    The objective is (1 - s) * nll + s * (nll averaged over the vocabulary), weighted
    and summed. It alone has a gradient (reverse mode, first order), by `hidden`, `head`
    and `finish`: the rows' sums are for reading. Logits and softmax are f32. `finish`
    is called on `hidden` first, on the tokens that carry loss only.
    """
    chunks = _chunked(hidden, labels, weights)

    def add(chunk, sums):
        objective, nll = sums
        logits = head_logits(finished(finish, chunk.hidden), head)
        more, part = _losses(logits, chunk.labels, chunk.weights, label_smoothing)
        return objective + more, chunk.put(nll, part)

    sums = chunks.loop(add, _zeros(chunks))
    return sums[0].sum(), chunks.back(sums[1], len(labels)).sum(-1)


def _forward(hidden, head, labels, weights, label_smoothing, finish):
    """Loss and gradients in one pass: the sum's cotangent is only a factor of them."""
    asked = jax.tree.map(lambda x: x.perturbed, (head, finish))
    arguments = hidden, labels, weights, head, finish
    hidden, labels, weights, head, finish = jax.tree.map(lambda x: x.value, arguments)
    chunks = _chunked(hidden, labels, weights)
    rows, vocabulary = len(labels), len(head)

    # The gradients of others are not even written down: of weights that all devices
    # share, each would be a sum over devices (`shard_map`), whose loops differ.
    trained = jax.tree.map(lambda x, yes: x if yes else None, (head, finish), asked)

    def add(chunk, carry):
        objective, nll, grad_hidden, grads = carry
        _, states, labels, weights = chunk
        states, pull = jax.vjp(
            lambda trained, x: finished(merge(trained, finish), x),
            trained[1],
            states,
        )
        logits = head_logits(states, head)
        more, part = _losses(logits, labels, weights, label_smoothing)
        wanted = jax.nn.one_hot(labels, vocabulary) * (1 - label_smoothing)
        slope = jax.nn.softmax(logits) - wanted - label_smoothing / vocabulary
        slope = (slope * weights[..., None]).astype(hidden.dtype)
        multiply = partial(jnp.einsum, precision=precision(hidden.dtype))
        grad_head = None
        if asked[0]:
            grad_head = multiply(
                "gsv,gsd->vd", slope, states, preferred_element_type=jnp.float32
            )
        grad = multiply("gsv,vd->gsd", slope, head.astype(hidden.dtype))
        grad_finish, grad = pull(grad)
        grads = jax.tree.map(jnp.add, grads, (grad_head, grad_finish))
        nll, grad_hidden = chunk.put(nll, part), chunk.put(grad_hidden, grad)
        return objective + more, nll, grad_hidden, grads

    zero, zeros = _zeros(chunks)
    grads = jax.tree.map(lambda x: jnp.zeros(x.shape) + zero.sum(), trained)
    kinds = jax.tree.map(lambda x: jnp.zeros(0, x.dtype), trained)
    start = zero, zeros, 0 * chunks.hidden, grads
    objective, nll, grad_hidden, grads = chunks.loop(add, start)
    grad_hidden = chunks.back(grad_hidden, rows)
    nll = chunks.back(nll, rows).sum(-1)
    return (objective.sum(), nll), (grad_hidden, grads, kinds)


def _backward(label_smoothing, gradients, cotangents):
    grad_hidden, grads, kinds = gradients
    factor = cotangents[0]
    if isinstance(factor, jax.custom_derivatives.SymbolicZero):
        factor = jnp.float32(0)
    # The factor is the loss's scale: rounded to bf16 it would tilt every gradient.
    grad_hidden = (grad_hidden.astype(jnp.float32) * factor).astype(grad_hidden.dtype)
    grad_head, grad_finish = jax.tree.map(
        lambda x, kind: (x * factor).astype(kind.dtype), grads, kinds
    )
    return grad_hidden, grad_head, None, None, grad_finish


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunked(hidden, labels, weights) -> _Chunks:
    rows, length = labels.shape
    devices = devices_of_rows(rows)
    shape = devices, rows // devices * length
    # At least one of each: an empty batch, and rows of a single token, have no targets.
    fewest = max(-(-shape[1] // CHUNKS), FULL_PRODUCT // devices)
    quarter = max(1, -(-min(shape[1], fewest) // 4))
    quarters = max(4, -(-shape[1] // quarter))
    quarters += quarters % 4 == 3  # which are done as a whole one
    longest = quarters * quarter
    padding = longest - shape[1]
    order = jnp.argsort(weights.reshape(shape) == 0, axis=-1, stable=True)

    def moved(x):
        index = order.reshape(*shape, *[1] * (x.ndim - 2))
        x = jnp.take_along_axis(x.reshape(*shape, *x.shape[2:]), index, 1)
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    most = jnp.max(jnp.sum(weights.reshape(shape) != 0, axis=-1), initial=0)
    return _Chunks(
        moved(hidden),
        moved(labels),
        moved(weights),
        order,
        quarter,
        -(-most // quarter),
    )


def _zeros(chunks: _Chunks) -> tuple[Float[Array, " G"], Float[Array, "G P"]]:
    """A sum for each device and a number for each token, which vary over devices as the
    tokens do (`shard_map`)."""
    return 0 * chunks.weights.sum(-1), 0 * chunks.weights


def _losses(logits, labels, weights, label_smoothing):
    """Each device's objective, and the negative log-likelihood of each token."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    nll = weights * (normaliser - chosen)
    if label_smoothing == 0.0:
        return nll.sum(-1), nll
    uniform = jnp.sum(weights * (normaliser - logits.mean(-1)), axis=-1)
    return (1 - label_smoothing) * nll.sum(-1) + label_smoothing * uniform, nll
