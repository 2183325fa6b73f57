"""The optimizer: optax, with the paper's schedules."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from prefix_jax.config import OptimConfig
from prefix_jax.errors import InputError
from prefix_jax.learning.split import leaf_names


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or down to 0 at `steps`."""
    if config.learning_rate is None:
        raise InputError(
            "optim.learning_rate is None; give a number (Config.resolved() chooses one)"
        )
    if config.warmup_steps > steps:
        raise InputError(
            f"optim.warmup_steps {config.warmup_steps} is more than train.steps {steps}"
        )
    rate, rest = config.learning_rate, max(steps - config.warmup_steps, 1)
    after = {
        "linear": lambda: optax.linear_schedule(rate, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(rate, rest),
        "constant": lambda: optax.constant_schedule(rate),
    }[config.schedule]()
    if config.warmup_steps == 0:
        return after
    # The first step is not wasted on a rate of 0.
    warmup = optax.linear_schedule(
        rate / config.warmup_steps, rate, max(config.warmup_steps - 1, 1)
    )
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW or Muon, scheduled.

    Norms and biases never decay; of what Muon leaves to AdamW nothing does, the
    embeddings neither (optax's default).
    """
    schedule = make_schedule(config, steps)
    if config.name == "muon":
        update = muon(
            schedule,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,  # updates of AdamW's size, so rates mean the same
        )
    else:
        update = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        )
    if config.clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


# (input axes, output axes) of the backbone's stacked matrices; the rest are batch axes.
_MATRIX_AXES = {
    "qkv/kernel": MuonDimensionNumbers((1,), (2, 4)),
    "out/kernel": MuonDimensionNumbers((1, 2), (3,)),
    "up/kernel": MuonDimensionNumbers((1,), (2,)),
    "down/kernel": MuonDimensionNumbers((1,), (2,)),
}


def _decayed(tree: Any) -> Any:
    """Which leaves decay: all but norms' scales and every bias.

    By name, since stacked biases and scales have more than one axis too.
    """
    names = iter(leaf_names(tree))
    return jax.tree.map(lambda _: not next(names).endswith(("bias", "/scale")), tree)


def _matrices(tree: Any) -> Any:
    """Which leaves Muon updates; None leaves go to AdamW."""
    names = iter(leaf_names(tree))
    return jax.tree.map(
        lambda _: _MATRIX_AXES.get("/".join(next(names).split("/")[-2:])), tree
    )
