"""Law 11: every recipe loads, and its training step traces on its backbone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefix_jax.config import Config
from prefix_jax.errors import InputError
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.split import split
from prefix_jax.learning.step import init_train_state, make_train_step
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.loading import load_config
from prefix_jax.model.prefix import init_prefix
from prefix_jax.recipe import load_recipe

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))

# What the hub's config.json says of the backbones that are not bundled.
SHAPES = {
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
}


def lower(config: Config):
    """The training step on shapes alone: no weight is ever made."""
    name = config.backbone.name
    shape = SHAPES[name] if name in SHAPES else load_config(name)

    def start(key):
        backbone = GPT2(
            shape, key=key, dtype=config.backbone.dtype, remat=config.backbone.remat
        )
        if config.backbone.weights == "pretrained":
            backbone = jax.tree.map(lambda x: x.astype(backbone.dtype), backbone)
        params = {"backbone": backbone}
        if config.train.method == "prefix":
            params["prefix"] = init_prefix(
                backbone, config.prefix, key=key, examples=[range(50)]
            )
        trainable, frozen = split(params, config.train.method)
        return init_train_state(trainable, optimizer, key), frozen

    optimizer = make_optimizer(config.optim, config.train.steps)
    state, frozen = jax.eval_shape(start, jax.random.key(0))
    rows = (config.train.batch_size, min(config.data.max_length, 128))
    batch = {
        "tokens": jax.ShapeDtypeStruct(rows, jnp.int32),
        "mask": jax.ShapeDtypeStruct(rows, jnp.bool_),
        "loss_mask": jax.ShapeDtypeStruct(rows, jnp.bool_),
    }
    return make_train_step(optimizer, config.train).lower(state, frozen, batch)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_its_step_traces(path):
    config = load_recipe(path)
    assert Config.from_dict(config.to_dict()) == config
    lowered = lower(config)
    state, metrics = lowered.out_info
    assert metrics["loss"].shape == ()
    if config.train.method == "prefix":
        trained = sum(
            int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.trainable)
        )
        assert trained < 80_000_000  # XSum's MLP of the large model is the largest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e2e_gpt2_medium", "e2e_gpt2_large"])
def test_step_of_the_paper_compiles(name):
    compiled = lower(load_recipe(REPOSITORY / "configs" / f"{name}.py")).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes > 600e6  # the backbone in bf16 and more


def test_a_recipe_says_how_to_run_it():
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        assert f"configs/{path.name}" in text.split('"""')[1], path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = 3", "makes no `config = Config"),
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("from prefix_jax.config import *\nconfig = Config(prefix=3 / 0)", "Zero"),
    ],
)
def test_a_recipe_that_makes_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(path)
