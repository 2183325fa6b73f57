"""Cross-entropy of target tokens; the logits [B T V] never exist.

A vocabulary is some hundred times as wide as a head: logits and their gradient are
most of a small batch's memory. Here the target tokens of each row are moved to its
front, and a loop over chunks of them makes logits, loss and, where they will be asked
for, gradients. Tokens that carry no loss cost nothing beyond the last chunk.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefix_jax.model.attention import precision
from prefix_jax.model.layers import head_logits

CHUNKS = 8
"""A row's tokens are cut into so many chunks,"""
FULL_PRODUCT = 128
"""or fewer, where matrix products of fewer rows than this would be slow."""


class _Chunks(NamedTuple):
    """Tokens with those that carry loss in front, T padded to whole chunks."""

    hidden: Float[Array, "B T D"]
    labels: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    order: Int[Array, "B T0"]
    """Where each of the first T0 tokens came from."""
    size: int
    number: Int[Array, ""]
    """Chunks with a token that carries loss."""

    def at(self, index) -> tuple[Array, Array, Array]:
        """One chunk's hidden states, labels and weights."""

        def cut(x):
            return jax.lax.dynamic_slice_in_dim(x, index * self.size, self.size, 1)

        return cut(self.hidden), cut(self.labels), cut(self.weights)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    label_smoothing: float,
) -> tuple[Float[Array, ""], Float[Array, " B"]]:
    """The summed objective, and each row's negative log-likelihood, nats.

    The objective is (1 - s) * nll + s * (nll averaged over the vocabulary), weighted
    and summed. It alone has a gradient (reverse mode, first order), by `hidden` and
    `head`: the rows' sums are for reading. Logits and softmax are f32.
    """
    chunks = _chunked(hidden, labels, weights)
    zero = _zero_of_rows(weights)

    def add(index, sums):
        objective, nll = sums
        states, labels, weights = chunks.at(index)
        logits = head_logits(states, head)
        more, more_nll = _losses(logits, labels, weights, label_smoothing)
        return objective + more, nll + more_nll

    objective, nll = jax.lax.fori_loop(0, chunks.number, add, (zero, zero))
    return objective.sum(), nll


def _forward(hidden, head, labels, weights, label_smoothing):
    """Loss and gradients in one pass: the sum's cotangent is only a factor of them."""
    head_moves = head.perturbed
    hidden, head, labels, weights = (x.value for x in (hidden, head, labels, weights))
    chunks = _chunked(hidden, labels, weights)
    zero = _zero_of_rows(weights)
    vocabulary = len(head)

    def add(index, carry):
        objective, nll, grad_hidden, grad_head = carry
        states, labels, weights = chunks.at(index)
        logits = head_logits(states, head)
        more, more_nll = _losses(logits, labels, weights, label_smoothing)
        wanted = jax.nn.one_hot(labels, vocabulary) * (1 - label_smoothing)
        slope = jax.nn.softmax(logits) - wanted - label_smoothing / vocabulary
        slope = (slope * weights[..., None]).astype(hidden.dtype)
        multiply = partial(jnp.einsum, precision=precision(hidden.dtype))
        grad_hidden = jax.lax.dynamic_update_slice_in_dim(
            grad_hidden,
            multiply("btv,vd->btd", slope, head.astype(hidden.dtype)),
            index * chunks.size,
            1,
        )
        if head_moves:
            grad_head += multiply(
                "btv,btd->vd", slope, states, preferred_element_type=jnp.float32
            )
        return objective + more, nll + more_nll, grad_hidden, grad_head

    start = (
        zero,
        zero,
        0 * chunks.hidden,
        jnp.zeros(head.shape) + zero.sum() if head_moves else None,
    )
    objective, nll, grad_hidden, grad_head = jax.lax.fori_loop(
        0, chunks.number, add, start
    )
    back = jnp.argsort(chunks.order, axis=-1)
    grad_hidden = jnp.take_along_axis(grad_hidden, back[..., None], 1)
    kind = jnp.zeros(0, head.dtype)
    return (objective.sum(), nll), (grad_hidden, grad_head, kind)


def _backward(label_smoothing, gradients, cotangents):
    grad_hidden, grad_head, kind = gradients
    factor = cotangents[0]
    if isinstance(factor, jax.custom_derivatives.SymbolicZero):
        factor = jnp.float32(0)
    if grad_head is not None:
        grad_head = (grad_head * factor).astype(kind.dtype)
    # The factor is the loss's scale: rounded to bf16 it would tilt every gradient.
    grad_hidden = (grad_hidden.astype(jnp.float32) * factor).astype(grad_hidden.dtype)
    return grad_hidden, grad_head, None, None


cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunked(hidden, labels, weights) -> _Chunks:
    rows, length = labels.shape
    # At least one of each: an empty batch, and rows of a single token, have no targets.
    size = max(1, min(length, max(-(-length // CHUNKS), FULL_PRODUCT // max(1, rows))))
    order = jnp.argsort(weights == 0, axis=-1, stable=True)
    padding = max(1, -(-length // size)) * size - length

    def moved(x):
        index = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        x = jnp.take_along_axis(x, index, 1)
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    most = jnp.max(jnp.sum(weights != 0, axis=-1), initial=0)
    return _Chunks(
        moved(hidden), moved(labels), moved(weights), order, size, -(-most // size)
    )


def _zero_of_rows(weights):
    """A zero for each row that varies over devices as the rows do (`shard_map`)."""
    return 0 * weights.sum(-1)


def _losses(logits, labels, weights, label_smoothing):
    """Objective and negative log-likelihood, summed over each row."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    nll = jnp.sum(weights * (normaliser - chosen), axis=-1)
    if label_smoothing == 0.0:
        return nll, nll
    uniform = jnp.sum(weights * (normaliser - logits.mean(-1)), axis=-1)
    return (1 - label_smoothing) * nll + label_smoothing * uniform, nll
