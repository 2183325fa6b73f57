"""What fused attention is on GPUs and TPUs alike: numbers, and parts for devices."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

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
        made = by_rows_and_heads(function, words, outputs)(*given)
        parted = tuple(x.reshape(size, rows, *x.shape[1:]) for x in made)
        return parted, (True,) * len(parted)

    return run
