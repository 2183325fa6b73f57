"""States of training, and folders of checkpoints, for the tests of both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prefix_jax.learning.split import split
from prefix_jax.learning.step import TrainState, init_train_state
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_kinds import FlatPrefix
from prefix_jax.storage.checkpoint import Checkpoints

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))


def start(backbone, length=4, optimizer=OPTIMIZER, key=None) -> TrainState:
    """A state of prefix mode before its first step."""
    config = backbone.config
    shape = (config.n_layer, 1, length, config.kv_heads, config.head_width)
    rng = np.random.default_rng(0)
    kv = KV(*(jnp.float32(rng.normal(size=shape)) for _ in range(2)))
    one = jax.tree.map(lambda x: jnp.ones((len(x), 1, 1, x.shape[3], 1)), kv)
    prefix = FlatPrefix(kv, one)
    trainable, _ = split({"backbone": backbone, "prefix": prefix}, "prefix")
    return init_train_state(
        trainable, optimizer, jax.random.key(7) if key is None else key
    )


@jax.jit
def peek(state):
    """A copy of the state that a donating step leaves alone."""
    return jax.tree.map(jnp.copy, state)


def make_step(optimizer=OPTIMIZER):
    """Like a training step: random, stateful, its input donated."""

    def step(state):
        key = jax.random.fold_in(state.key, state.step)
        grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape), state.trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, opt_state, state.key)

    return jax.jit(step, donate_argnums=0)


def opened(workdir, fingerprint="backbone-1", **options):
    return Checkpoints(workdir, backbone_fingerprint=fingerprint, **options)


def same(a: TrainState, b: TrainState) -> bool:
    """Structure, types and bits."""

    def plain(x):
        return (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        )

    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        x.dtype == y.dtype and np.array_equal(plain(x), plain(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
