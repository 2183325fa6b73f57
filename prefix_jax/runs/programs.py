"""Compiled programs that the runs of one process share."""

import functools

import optax
from jax.sharding import Mesh

from prefix_jax.config import Config, OptimConfig, Parallel, TrainConfig
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.step import Step, make_eval_step, make_train_step

eval_program = functools.cache(make_eval_step)


def train_program(
    config: Config, mesh: Mesh
) -> tuple[optax.GradientTransformation, Step]:
    """The optimizer and the step of a run; one for all that differ in neither."""
    names = ("batch_size", "accumulate", "normalise", "label_smoothing")
    asked = TrainConfig(**{name: getattr(config.train, name) for name in names})
    return _train_program(
        config.optim, config.train.steps, asked, mesh, config.mesh.parallel
    )


@functools.lru_cache(maxsize=8)
def _train_program(
    optim: OptimConfig, steps: int, train: TrainConfig, mesh: Mesh, parallel: Parallel
) -> tuple[optax.GradientTransformation, Step]:
    optimizer = make_optimizer(optim, steps)
    return optimizer, make_train_step(optimizer, train, mesh, parallel)
