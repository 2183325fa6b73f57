"""Devices: where the parts of a backbone lie, and that they compute the same."""

import chex
import jax
import numpy as np
import optax
import pytest
from families import each_family
from rounding import STEPS, SUM
from stepping import KEY, ROWS, make_batch, start

from prefix_jax.config import MeshConfig, TrainConfig
from prefix_jax.learning.step import init_train_state, make_train_step
from prefix_jax.mesh import layout, make_mesh

PARTED = [{"fsdp": 4}, {"data": 1, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]


@each_family
@pytest.mark.parametrize("axes", PARTED, ids=str)
@pytest.mark.parametrize("method", ["prefix", "full"])
def test_a_parted_backbone_equals_a_whole_one(backbone, method, axes):
    """Law 7: the same losses and the same parameters, which stay where they lay.

    Adam would make steps of the rounding in the keys' biases, whose gradient is 0.
    """
    optimizer = optax.sgd(0.1, momentum=0.9)
    train = TrainConfig(batch_size=ROWS)
    mesh = make_mesh(MeshConfig(**axes))
    trained = []
    for place in (None, mesh):
        state, frozen = start(backbone, method)
        state = init_train_state(state.trainable, optimizer, KEY)
        if place is not None:
            both = state, frozen
            state, frozen = jax.device_put(both, layout(both, place))
        where = jax.tree.map(lambda x: x.sharding, state)
        step = make_train_step(optimizer, train, place)
        losses = []
        for number in range(4):
            state, metrics = step(state, frozen, make_batch(number))
            losses.append(float(metrics["loss"]))
        for leaf, before in zip(
            jax.tree.leaves(state), jax.tree.leaves(where), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(before, leaf.ndim)
        trained.append((losses, state.trainable))
    (one, whole), (other, parted) = trained
    np.testing.assert_allclose(one, other, **SUM)
    chex.assert_trees_all_close(whole, parted, **STEPS)


@each_family
def test_layout_parts_the_backbone_only(backbone):
    """Every matrix of the layers, whatever it is called; a device holds its part."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    state, frozen = start(backbone)
    blocks, where = frozen["backbone"].blocks, layout(frozen, mesh)["backbone"].blocks
    matrices = 0
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(blocks), jax.tree.leaves(where), strict=True
    ):
        if "kernel" in jax.tree_util.keystr(path):
            matrices += 1
            assert np.prod(place.shard_shape(leaf.shape)) == leaf.size / 4
    assert matrices >= 4
    assert all(x.is_fully_replicated for x in jax.tree.leaves(layout(state, mesh)))
