"""Our training step, as a function that gives one that trains (see train_torch.py)."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from reports import random_gpt2
from texts import LEARNING_RATE, examples_in, packed

import prefix_jax as pj
from prefix_jax.data.tokens import Row

INPUT_SECONDS: list[float] = []
"""What each batch took to make, which happens while the device runs the step before."""


def ours(rows: list[Row], options) -> Callable[[int], int]:
    """`make_train_step` on packed rows."""
    key = jax.random.key(0)
    backbone = random_gpt2(options.shape, options.dtype)
    shape = pj.PrefixConfig(init="random", length=options.prefix_length)
    prefix = pj.init_prefix(backbone, shape, key=key)
    trainable, frozen = pj.split({"backbone": backbone, "prefix": prefix}, "prefix")
    optimizer = pj.make_optimizer(pj.OptimConfig(learning_rate=LEARNING_RATE), 1000)
    state = pj.init_train_state(trainable, optimizer, key)
    step = pj.make_train_step(optimizer)
    batches = packed(rows, options.pack, options.batch_size)

    def run(wanted: int) -> int:
        nonlocal state
        examples, metrics = 0, None
        while examples < wanted:
            started = time.perf_counter()
            batch = next(batches)
            INPUT_SECONDS.append(time.perf_counter() - started)
            state, metrics = step(state, frozen, jax.tree.map(jnp.asarray, batch))
            examples += examples_in(batch)
        if metrics is not None and not math.isfinite(metrics["loss"]):
            raise ArithmeticError(
                "the loss is not finite: what was timed is no training"
            )
        return examples

    return run


def peak_bytes() -> int | None:
    """Most memory that arrays took on the device; None on a CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")
