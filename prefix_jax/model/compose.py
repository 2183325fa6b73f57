"""Prefixes made of prefixes: banks, concatenations, averages.

The positions rule. Backbones add positions to embeddings, or turn keys by them, so
whatever places a prefix's keys were learned for, or read at, is part of their values,
and composing never changes them: two prefixes of words one after the other are not the
prefix of all the words. What changes is how many positions stand before the text, and
with `position_mode="shifted"` the text starts to count after all of them. Attention is
a weighted mean over keys in any order: `concatenate([a, b])` and `concatenate([b, a])`
are the same prefix (but where a layer has a window, which counts positions).
"""

import dataclasses
import math
from collections.abc import Sequence
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from prefix_jax.errors import InputError
from prefix_jax.model.kv import KV, check_kv


def bank(prefixes: Sequence[KV]) -> KV:
    """Many prefixes as one KV of N = their number, for rows to choose from.

    Each has N = 1; lengths may differ: shorter ones are padded at the end with
    positions that attention never sees. Raises InputError where they cannot stand
    together.
    """
    _check_alike(prefixes)
    for number, prefix in enumerate(prefixes):
        if prefix.number != 1:
            raise InputError(
                f"prefix {number} has N = {prefix.number}; a bank is made of single "
                "prefixes (N = 1)"
            )
    longest = max(prefix.length for prefix in prefixes)
    lengths = np.concatenate([_lengths(prefix) for prefix in prefixes], axis=1)

    def join(leaves):
        return jnp.concatenate([_pad(x, longest) for x in leaves], axis=1)

    return dataclasses.replace(
        prefixes[0],
        keys=join([prefix.keys for prefix in prefixes]),
        values=join([prefix.values for prefix in prefixes]),
        lengths=None if lengths.min() == longest else jnp.asarray(lengths, jnp.int32),
    )


def concatenate(prefixes: Sequence[KV]) -> KV:
    """One prefix that attends to all of them: P is the sum of their lengths.

    It equals none of them alone: the text's attention is shared between them, as
    between instructions that follow one another. All have the same N, and every
    position is real. Gated ones cannot be shared between: each weighs what its own
    softmax gives. Raises InputError otherwise.
    """
    _check_alike(prefixes)
    _check_same_shape(prefixes, "concatenate", length=False)
    for number, prefix in enumerate(prefixes):
        if prefix.lengths is not None:
            raise InputError(
                f"prefix {number} does not have all its positions in every layer; "
                "concatenate takes prefixes whose positions are all real"
            )
        if prefix.own_softmax:
            raise InputError(
                f"prefix {number} is gated: it has a softmax of its own, and one "
                "softmax over several would change what its gates weigh; concatenate "
                "takes prefixes without gates"
            )
    return dataclasses.replace(
        prefixes[0],
        keys=jnp.concatenate([prefix.keys for prefix in prefixes], axis=2),
        values=jnp.concatenate([prefix.values for prefix in prefixes], axis=2),
    )


def average(
    prefixes: Sequence[KV], weights: Sequence[float | Float[Array, ""]] | None = None
) -> KV:
    """The weighted mean of keys and of values, position by position.

    `weights` need not sum to 1: they are divided by their sum; None: all equal. It is
    meaningful for prefixes that share their start (two seeds or two checkpoints of one
    run), since only then does position p of one correspond to position p of another.
    Raises InputError for prefixes of different shapes, or weights whose sum is 0.
    """
    _check_alike(prefixes)
    _check_same_shape(prefixes, "average", length=True)
    shares = _shares(weights, len(prefixes))

    def mean(leaves):
        # Not a matrix product, which accelerators round to bf16 by default.
        return sum(share * x for share, x in zip(shares, leaves, strict=True))

    return dataclasses.replace(
        prefixes[0],
        keys=mean([prefix.keys for prefix in prefixes]),
        values=mean([prefix.values for prefix in prefixes]),
    )


def interpolate(start: KV, end: KV, t: float | Float[Array, ""]) -> KV:
    """`(1 - t) * start + t * end`; t beyond 0 and 1 extrapolates. See `average`."""
    if not isinstance(t, Tracer) and not isinstance(_plain(t), Real):
        raise InputError(f"t is {t!r}; expected a number, 0 for start and 1 for end")
    return average([start, end], [1 - t, t])


def _shares(weights, number) -> Float[Array | np.ndarray, " N"]:
    """Weights that sum to 1, f32; traced ones are taken as they are."""
    if weights is None:
        weights = [1.0] * number
    if len(weights) != number:
        raise InputError(f"{number} prefixes need as many weights; got {weights}")
    if not any(isinstance(weight, Tracer) for weight in jax.tree.leaves(weights)):
        if not all(
            isinstance(w, Real) and math.isfinite(w) for w in map(_plain, weights)
        ):
            raise InputError(f"weights must be finite numbers; got {weights}")
        if sum(map(_plain, weights)) == 0:
            raise InputError(f"weights {weights} sum to 0; they cannot be normalised")
        given = np.asarray([_plain(weight) for weight in weights], float)
        return np.asarray(given / given.sum(), np.float32)
    traced = jnp.stack([jnp.asarray(weight, jnp.float32) for weight in weights])
    return traced / traced.sum()


def _plain(weight):
    """An array's only number as Python's; anything else as it is."""
    return weight.item() if getattr(weight, "size", None) == 1 else weight


def _lengths(prefix):
    """Real positions in each layer, of each of the N, [L N]."""
    if prefix.lengths is None:
        return np.full(prefix.keys.shape[:2], prefix.length)
    return np.asarray(prefix.lengths)


def _pad(x, length):
    missing = length - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))


def _check_alike(prefixes):
    if isinstance(prefixes, KV):
        raise InputError("expected several prefixes, got one; give a list of them")
    if not prefixes:
        raise InputError("there are no prefixes; expected at least one")
    for prefix in prefixes:
        check_kv(prefix)
    first = prefixes[0]
    for number, prefix in enumerate(prefixes):
        if prefix.position_mode != first.position_mode:
            raise InputError(
                f"prefix {number} has {prefix.position_mode} positions and prefix 0 "
                f"{first.position_mode}; text cannot start at two places at once"
            )
        if prefix.placement != first.placement:
            raise InputError(
                f"prefix {number} is placed as {prefix.placement} and prefix 0 as "
                f"{first.placement}; one stands before the source, the other after it"
            )
        if prefix.own_softmax != first.own_softmax:
            raise InputError(
                f"prefix {number if prefix.own_softmax else 0} is gated and prefix "
                f"{0 if prefix.own_softmax else number} is not; one has a softmax of "
                "its own, the other shares the text's"
            )
        layers, _, _, *heads = prefix.keys.shape
        if [layers, *heads] != [first.keys.shape[0], *first.keys.shape[3:]]:
            raise InputError(
                f"prefix {number} is for {layers} layers of {heads[0]} heads of width "
                f"{heads[1]}, prefix 0 for {first.keys.shape[0]} of "
                f"{first.keys.shape[3]} of {first.keys.shape[4]}; they belong to "
                "different backbones"
            )


def _check_same_shape(prefixes, what, *, length):
    first = prefixes[0]
    for number, prefix in enumerate(prefixes):
        if prefix.number != first.number:
            raise InputError(
                f"prefix {number} has N = {prefix.number} and prefix 0 N = "
                f"{first.number}; {what} takes equal numbers"
            )
        if length and prefix.length != first.length:
            raise InputError(
                f"prefix {number} has {prefix.length} positions and prefix 0 "
                f"{first.length}; {what} takes equal lengths"
            )
        if length and not np.array_equal(_lengths(prefix), _lengths(first)):
            raise InputError(
                f"prefix {number} and prefix 0 have positions in different layers; "
                f"{what} takes equal ones"
            )
