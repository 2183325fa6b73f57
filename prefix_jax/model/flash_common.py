"""What fused attention is on GPUs and TPUs alike: numbers, and parts for devices."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec
from jaxtyping import Array

from prefix_jax.model.parted import PARTED, free_axes, parting

LOG2E = math.log2(math.e)
"""Kernels take powers of 2, of scores times this."""
HIDDEN = -1e30
"""The score of a key that is not seen; its weight is 0 beside one that is."""


def by_rows_and_heads(
    function: Callable[..., Sequence[Array]],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Callable[..., Sequence[Array]]:
    """The function of arrays whose rows (b) and heads (h) it takes each for itself.

    Each word names an array's axes, a letter each. Under a mesh (`jax.set_mesh`, or as
    the training step has it) devices compute the rows and heads that they have: XLA
    knows nothing of what is in a kernel, and would gather them all. `vmap` gives the
    function more rows.
    """

    @custom_vmap
    def run(*arguments):
        mesh = free_axes()
        if not mesh:
            return tuple(function(*arguments))
        axes = {
            letter: parting(mesh, letter, arguments[0].shape[inputs[0].index(letter)])
            for letter in PARTED
        }

        def specs(words):
            return tuple(PartitionSpec(*map(axes.get, word)) for word in words)

        return jax.shard_map(
            lambda *own: tuple(function(*own)),
            in_specs=specs(inputs),
            out_specs=specs(outputs),
            check_vma=False,  # a kernel does not say over which axes its results vary
        )(*arguments)

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
        made = by_rows_and_heads(function, words, outputs)(*given)
        parted = tuple(x.reshape(size, rows, *x.shape[1:]) for x in made)
        return parted, (True,) * len(parted)

    return run
