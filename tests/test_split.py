"""The freeze: what `split` gives to the optimizer and what it keeps from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefix_jax.config import OptimConfig
from prefix_jax.errors import InputError
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.split import count, leaf_names, merge, split
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig


@pytest.fixture(scope="module")
def params(backbone):
    config = PrefixConfig(init="zeros", length=4)
    prefix = init_prefix(backbone, config, key=jax.random.key(0))
    return {"backbone": backbone, "prefix": prefix}


def of(params, method):
    return split(
        params if method == "prefix" else {"backbone": params["backbone"]}, method
    )


def test_prefix_trains_the_prefix_alone(params):
    trainable, frozen = of(params, "prefix")
    assert leaf_names(trainable) == ["prefix/keys", "prefix/values"]
    assert all(
        name.startswith("backbone/") or name.endswith("_scale")
        for name in leaf_names(frozen)
    )


def test_full_trains_everything(params):
    trainable, frozen = of(params, "full")
    assert count(trainable) == count(params["backbone"])
    assert leaf_names(frozen) == []


def test_top2_trains_two_layers_and_the_last_norm(params):
    trainable, frozen = of(params, "top2")
    assert {name.split("/")[1] for name in leaf_names(trainable)} == {"blocks", "ln_f"}
    config = params["backbone"].config
    for name, leaf in zip(
        leaf_names(trainable), jax.tree.leaves(trainable), strict=True
    ):
        if "blocks" in name:
            assert name.startswith("backbone/blocks/1/") and leaf.shape[0] == 2
    assert count(trainable) + count(frozen) == count(params["backbone"])
    below = jax.tree.leaves(frozen["backbone"].blocks)
    assert all(leaf.shape[0] == config.n_layer - 2 for leaf in below)


@pytest.mark.parametrize("method", ["prefix", "full", "top2"])
def test_merge_gives_the_same_model_back(params, method):
    whole = merge(*of(params, method))
    tokens = jnp.asarray([[1, 2, 3, 4]])
    np.testing.assert_array_equal(
        jax.jit(whole["backbone"].__call__)(tokens),
        jax.jit(params["backbone"].__call__)(tokens),
    )


@pytest.mark.parametrize("method", ["prefix", "full", "top2"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_slots_are_the_trainable_leaves(params, method, name):
    """Law 6: nothing the size of the backbone exists beside the frozen weights."""
    trainable, _ = of(params, method)
    state = make_optimizer(OptimConfig(name=name, learning_rate=0.1), 10).init(
        trainable
    )
    shapes = [leaf.shape for leaf in jax.tree.leaves(trainable)]
    slots = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    if name == "muon":
        slots.remove((3,))  # the coefficients of its iteration
    assert set(slots) == set(shapes)
    momenta = 2 if name == "adamw" else 1
    assert len(slots) >= momenta * len(shapes)
    assert sum(map(np.prod, slots)) <= 2 * count(trainable)


def test_trainable_leaves_are_f32_in_a_bf16_backbone(params):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["backbone"])
    trainable, _ = split({"backbone": narrow}, "full")
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {
        jnp.dtype(jnp.float32)
    }


def test_unknown_method_and_missing_prefix_are_refused(params):
    with pytest.raises(InputError, match="expected one of prefix, full, top2"):
        split(params, "lora")
    with pytest.raises(InputError, match="trains nothing"):
        split({"backbone": params["backbone"]}, "prefix")


@pytest.mark.parametrize("method", ["full", "top2"])
def test_buffers_of_an_activation_are_not_trained(params, method):
    """xIELU's beta and eps; its two alphas are."""
    config = dataclasses.replace(params["backbone"].config, activation_function="xielu")
    trainable, _ = split({"backbone": GPT2(config, key=jax.random.key(0))}, method)
    names = {name.split("/")[-1] for name in leaf_names(trainable) if "act/" in name}
    assert names == {"alpha_p", "alpha_n"}


@pytest.mark.parametrize(
    ("optimizer", "decayed"), [("adamw", ("kernel", "embedding")), ("muon", "kernel")]
)
def test_weight_decay_leaves_norms_and_biases_alone(params, optimizer, decayed):
    """With a gradient of zero, decay is all that moves a leaf."""
    trainable, _ = of(params, "full")
    trainable = jax.tree.map(jnp.ones_like, trainable)
    config = OptimConfig(name=optimizer, learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    zero = jax.tree.map(jnp.zeros_like, trainable)
    updates, _ = optimizer.update(zero, optimizer.init(trainable), trainable)
    for name, update in zip(leaf_names(updates), jax.tree.leaves(updates), strict=True):
        assert bool(jnp.any(update != 0)) == name.endswith(decayed), name
