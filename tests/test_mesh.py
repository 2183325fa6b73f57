"""Devices: where the parts of a backbone lie, and that they compute the same."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import each_family
from prompts import METHODS, PROMPTS, decode, make_prefix
from rounding import STEPS, SUM
from stepping import KEY, ROWS, make_batch, start

from prefix_jax.config import MeshConfig, TrainConfig
from prefix_jax.decoding.generate import generate_sequences
from prefix_jax.decoding.program import write
from prefix_jax.decoding.request import Request
from prefix_jax.learning.step import init_train_state, make_train_step
from prefix_jax.mesh import layout, make_mesh, put, sharing, traced_under
from prefix_jax.model.compose import bank
from prefix_jax.model.families import random_backbone
from prefix_jax.runs.collectives import collectives

ALL_WAYS = {"data": 2, "fsdp": 2, "tensor": 2}


@each_family
@pytest.mark.parametrize("method", ["prefix", "full"])
def test_a_parted_backbone_equals_a_whole_one(backbone, method):
    """Law 7: the same losses and the same parameters, which stay where they lay."""
    check_training(backbone, method, ALL_WAYS)


@pytest.mark.parametrize("axes", [{"fsdp": 4}, {"data": 1, "tensor": 4}], ids=str)
@pytest.mark.parametrize("method", ["prefix", "full"])
@pytest.mark.parametrize(
    "backbone",
    # Whose two heads of keys cannot be dealt out to four.
    ["gpt2", pytest.param("windows", marks=pytest.mark.slow)],
    indirect=True,
)
def test_so_it_does_parted_in_one_way_only(backbone, method, axes):
    check_training(backbone, method, axes)


@pytest.mark.parametrize("axes", [{"data": 4}, {"data": 2, "tensor": 2}], ids=str)
def test_so_it_does_with_a_single_layer(backbone, axes):
    """A stack of its own: trained where it is finished, for target tokens only."""
    config = dataclasses.replace(backbone.config, n_layer=1)
    check_training(random_backbone(config, key=KEY), "full", axes)


def test_what_is_parted_is_not_left_to_a_loop(backbone):
    def left(**axes):
        def forward(tokens):
            return alone.forward(tokens, finished=False).finish

        mesh = make_mesh(MeshConfig(**axes))
        return jax.eval_shape(traced_under(mesh, forward), jnp.zeros((8, 4), int))

    alone = backbone.parted(1, 2)
    assert left(data=8) is None
    alone = backbone.parted(2, 1)
    assert left(data=8) is not None
    assert left(data=4, fsdp=2) is left(data=4, tensor=2) is None


def check_training(backbone, method, axes):
    # Adam would make steps of the rounding in the keys' biases, whose gradient is 0.
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


@pytest.mark.parametrize("method", METHODS)
def test_devices_that_share_prompts_write_the_same(backbone, tokenizer, method):
    """Law 7: seven prompts, in batches that the devices cannot share evenly."""
    check_texts(backbone, tokenizer, METHODS[method], {"data": 3})


@each_family
def test_so_they_do_where_each_has_a_part_of_the_backbone(backbone, tokenizer):
    check_texts(backbone, tokenizer, METHODS["sample"], ALL_WAYS)


def check_texts(backbone, tokenizer, method, axes):
    prompts = [*PROMPTS, *PROMPTS[:3]]
    many = bank([make_prefix(backbone, length, seed=length) for length in (2, 5)])
    mesh = make_mesh(MeshConfig(**axes))
    # Some rows end soon, others never.
    ends = tuple(range(0, 300, 10))
    settings = decode(method, batch_size=4, end_tokens=ends, stop=("ri",))

    def run(backbone, mesh=None):
        return generate_sequences(
            *(backbone, tokenizer, prompts),
            prefix=many,
            prefix_ids=[number % 2 for number in range(7)],
            decode=settings,
            mesh=mesh,
        )

    # None of a batch's arrays has to be moved when its turn comes.
    texts = run(backbone)
    assert len({len(one.tokens) for row in texts for one in row}) > 1
    with jax.transfer_guard_device_to_device("disallow"):
        shared = run(backbone, mesh)
    for row, other in zip(texts, shared, strict=True):
        for one, same in zip(row, other, strict=True):
            assert one.tokens == same.tokens and one.text == same.text
            assert one.log_prob == pytest.approx(same.log_prob, abs=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_devices_that_share_prompts_send_nothing(backbone, tokenizer, method):
    """Nor does any hold the caches of others."""
    settings = decode(METHODS[method], repetition_penalty=1.3, stop=("x",))
    prompts, needed = PROMPTS * 4, []
    for number in (1, 4):
        mesh = make_mesh(MeshConfig(data=number))
        whole = put(backbone, mesh)
        request = Request.make(
            whole, tokenizer, prompts, None, None, settings, mesh=mesh
        )
        how = {"method": request.method, "mesh": mesh}
        inputs = request.inputs(list(range(16)))
        compiled = write.lower(request.backbone, **inputs, **how).compile()
        assert not collectives(compiled.as_text() or "")
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.5 * needed[0]


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        ({"data": 1}, "1 device (of 8) computes each batch"),
        ({"data": 8}, "8 devices (of 8) share each batch"),
        (
            {"data": 1, "fsdp": 4},
            "4 devices (of 8) share each batch; the backbone is in 4 parts",
        ),
        (
            ALL_WAYS,
            "8 devices (of 8) share each batch; rows over 4, each of them over 2; "
            "the backbone is in 4 parts",
        ),
    ],
)
def test_who_shares_a_batch_is_told(axes, line):
    assert sharing(make_mesh(MeshConfig(**axes))) == line
