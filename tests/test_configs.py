"""Law 11: every recipe loads, and its training step traces on its backbone."""

from pathlib import Path

import jax
import numpy as np
import pytest

from prefix_jax.config import Config
from prefix_jax.errors import InputError
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.step import make_train_step
from prefix_jax.recipe import load_recipe
from prefix_jax.runs.shapes import batch_shapes, train_shapes

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))


def lower(config: Config):
    """The training step on shapes alone: no weight is ever made."""
    state, frozen = train_shapes(config)
    optimizer = make_optimizer(config.optim, config.train.steps)
    step = jax.jit(make_train_step(optimizer, config.train))
    return step.lower(state, frozen, batch_shapes(config))


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
        (
            "from prefix_jax.config import *\nconfig = Config(prefix=3 / 0)",
            "^recipe.py, line 2: Zero",
        ),
    ],
)
def test_a_recipe_that_makes_no_config_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = Path("recipe.py")
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(path)
