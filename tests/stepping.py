"""A small training step, for the tests of what it does and of where it runs."""

import jax
import numpy as np

from prefix_jax.config import OptimConfig
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.split import split
from prefix_jax.learning.step import init_train_state
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig

ROWS, TOKENS = 8, 12
OPTIMIZER = make_optimizer(OptimConfig(learning_rate=1e-2), 20)


def make_batch(seed=0, rows=ROWS):
    random = np.random.default_rng(seed)
    lengths = random.integers(4, TOKENS + 1, rows)
    mask = np.arange(TOKENS) < lengths[:, None]
    return {
        "tokens": random.integers(0, 300, (rows, TOKENS)).astype(np.int32),
        "mask": mask,
        "loss_mask": mask & (np.arange(TOKENS) >= lengths[:, None] // 2),
    }


KEY = jax.random.key(2)


def start(backbone, method="prefix", **prefix):
    params = {"backbone": backbone}
    if method == "prefix":
        config = PrefixConfig(init="random", length=5, **prefix)
        # One of whose gradients none is nearly 0: Adam would divide its rounding by it.
        params["prefix"] = init_prefix(backbone, config, key=jax.random.key(0))
    trainable, frozen = split(params, method)
    return init_train_state(trainable, OPTIMIZER, KEY), frozen
