"""What a section of the configuration takes, and how it refuses the rest."""

import dataclasses
import math
import re
from typing import Literal, get_args, get_origin, get_type_hints

import grain
import jax
import jaxtyping
import numpy as np
import pytest

from prefix_jax.config import (
    BackboneConfig,
    Config,
    DecodeConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.score_config import ScoreConfig


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """Without the tests' own type checker, which would be there before the check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def choices():
    """Every field of every section that has a closed list of values."""
    for section, kind in get_type_hints(Config).items():
        for name, hint in get_type_hints(kind).items():
            for part in (hint, *get_args(hint)):
                if get_origin(part) is Literal and get_origin(hint) is not tuple:
                    yield pytest.param(
                        kind, name, get_args(part), id=f"{section}.{name}"
                    )


@pytest.mark.parametrize(("kind", "name", "values"), list(choices()))
def test_a_typo_in_a_choice_is_refused_and_every_choice_is_taken(kind, name, values):
    for value in values:
        others = {
            "words": {"words": "The town"},
            "labels": {"labels": ("good", "bad")},
        }.get(value, {})
        others |= {"start": "runs/mine"} if (name, value) == ("init", "prefix") else {}
        others |= {"method": "beam"} if name == "early_stopping" else {}
        others |= {"remat": True} if name == "remat_keeps" else {}
        others |= {"labels": ("0=a", "1=b")} if value == "classification" else {}
        assert getattr(kind(**{name: value}, **others), name) == value
        with pytest.raises(InputError) as caught:
            kind(**{name: f"{value}x"})
        message = str(caught.value)
        assert f'.{name} is "{value}x"; expected' in message
        assert f'did you mean "{value}"?' in message


def test_no_lengths_at_all_are_refused():
    with pytest.raises(InputError, match=r"prefix\.lengths is \(\); expected"):
        PrefixConfig(lengths=(), init="random")


def test_a_typo_in_a_list_of_choices_is_refused():
    with pytest.raises(InputError, match=r'score.metrics\[1\] is "blue".*"bleu"\?'):
        ScoreConfig(metrics=("ter", "blue"))


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        (
            PrefixConfig,
            "length",
            "10",
            'prefix.length is "10"; expected a whole number',
        ),
        (
            PrefixConfig,
            "length",
            True,
            "True; expected a whole number from 1 to 1,000,000, or None",
        ),
        (PrefixConfig, "length", 10.0, "10.0; expected a whole number"),
        (PrefixConfig, "words", None, "None; expected text"),
        (BackboneConfig, "remat", 1, "1; expected True or False"),
        (TrainConfig, "steps", None, "None; expected a whole number"),
        (
            TrainConfig,
            "label_smoothing",
            "0.1",
            "expected a finite number >= 0 and < 1",
        ),
        (DataConfig, "path", 3, "3; expected text, or None"),
        (DataConfig, "buckets", 64, "64; expected a tuple"),
        (DataConfig, "buckets", (64, "128"), r'data.buckets[1] is "128"; expected a'),
    ],
)
def test_a_value_of_another_type_is_refused(kind, name, value, expected):
    with pytest.raises(InputError, match=re.escape(expected)):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "inside", "outside"),
    [
        (PrefixConfig, "length", 1, 0),
        (PrefixConfig, "hidden", 1, 0),
        (PrefixConfig, "examples", 1, 0),
        (PrefixConfig, "dropout", 0, 1),
        (DataConfig, "max_length", 4, 3),
        (DataConfig, "max_target_length", 1, 0),
        (DataConfig, "limit", 1, 0),
        (DataConfig, "validation_limit", 1, 0),
        (DataConfig, "buckets", (1,), (8, 0)),
        (OptimConfig, "learning_rate", 1e-9, 0.0),
        (OptimConfig, "warmup_steps", 0, -1),
        (OptimConfig, "weight_decay", 0, -0.1),
        (OptimConfig, "b1", 0, 1),
        (OptimConfig, "b2", 0.999, -0.1),
        (OptimConfig, "clip_norm", 1, 0),
        (TrainConfig, "steps", 0, -1),
        (TrainConfig, "batch_size", 1, 0),
        (TrainConfig, "patience", 1, 0),
        (TrainConfig, "accumulate", 1, 0),
        (TrainConfig, "label_smoothing", 0.5, 1),
        (TrainConfig, "seed", 0, -1),
        (TrainConfig, "eval_every", 1, 0),
        (TrainConfig, "eval_batches", 1, 0),
        (TrainConfig, "samples", 0, -1),
        (TrainConfig, "checkpoint_every", 1, 0),
        (TrainConfig, "log_every", 1, 0),
        (DecodeConfig, "max_new_tokens", 1, 0),
        (DecodeConfig, "batch_size", 1, 0),
        (MeshConfig, "data", 1, 0),
    ],
)
def test_a_number_out_of_bounds_is_refused(kind, name, inside, outside):
    others = {"kind": "mlp"} if name == "hidden" else {}
    assert getattr(kind(**{name: inside}, **others), name) == inside
    with pytest.raises(InputError, match=rf"\.{name}\b.* is .*; expected"):
        kind(**{name: outside})


def whole_numbers():
    """Every field of every section that is a whole number."""
    for section, kind in get_type_hints(Config).items():
        for name, hint in get_type_hints(kind).items():
            if int in (hint, *get_args(hint)):
                yield pytest.param(kind, name, id=f"{section}.{name}")


@pytest.mark.parametrize(("kind", "name"), list(whole_numbers()))
def test_a_number_that_no_machine_holds_is_refused(kind, name):
    """As a mistake in the field, not as an overflow or the end of the memory."""
    for value in (2**63, -(2**63)):
        given = (value,) if get_origin(get_type_hints(kind)[name]) is tuple else value
        bound = re.compile(rf"\.{name}\b.* is {value}; .* from \d+ to [\d,]+")
        with pytest.raises(InputError, match=bound):
            kind(**{name: given})


@pytest.mark.parametrize("name", ["train", "decode"])
def test_every_seed_that_is_taken_makes_a_key(name):
    most = 2**32 - 1
    others = {"method": "sample"} if name == "decode" else {}
    kind = get_type_hints(Config)[name]
    seed = kind(seed=most, **others).seed
    assert jax.random.key(seed) != jax.random.key(seed - 1)
    np.random.default_rng(seed)
    grain.MapDataset.range(2).seed(seed)
    with pytest.raises(InputError, match=f"{name}.seed is {most + 1}; expected"):
        kind(seed=most + 1, **others)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "clip_norm", "weight_decay", "b1"])
def test_a_number_that_is_not_finite_is_refused(name, value):
    with pytest.raises(InputError, match=f"optim.{name} is {value}; expected a finite"):
        OptimConfig(**{name: value})


def test_a_float_takes_a_whole_number():
    assert OptimConfig(learning_rate=1).learning_rate == 1


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PrefixConfig, {"init": "words", "words": " "}, "prefix.words is empty"),
        (PrefixConfig, {"init": "zeros", "length": None}, "prefix.length is None"),
        (TrainConfig, {"batch_size": 9, "accumulate": 2}, "not a multiple"),
        (PrefixConfig, {"words": "The town"}, 'it is for "words" only'),
        (PrefixConfig, {"hidden": 64}, 'it is for "mlp" only'),
        (PrefixConfig, {"init": "zeros", "examples": 5}, 'for "examples" only'),
        (DecodeConfig, {"beams": 10}, 'it is for "beam" only'),
        (DecodeConfig, {"method": "beam", "seed": 1}, 'it is for "sample" only'),
    ],
)
def test_fields_that_contradict_each_other_are_refused(kind, values, message):
    with pytest.raises(InputError, match=message):
        kind(**values)


def test_unknown_fields_are_refused_by_name():
    values = Config().to_dict()
    values["prefix"]["lenght"] = 3
    message = r'unknown field prefix\.lenght; .* did you mean "length"\?'
    with pytest.raises(InputError, match=message):
        Config.from_dict(values)
    with pytest.raises(InputError, match=r'unknown section.* did you mean "prefix"'):
        Config.from_dict({"prefixes": {}})
    with pytest.raises(InputError, match="section prefix is 3; expected an object"):
        Config.from_dict({"prefix": 3})


@pytest.mark.parametrize("given", [None, {"source": "quickstart"}])
def test_a_section_of_another_type_is_refused(given):
    with pytest.raises(InputError, match=r"data is .*; expected DataConfig\(...\)"):
        Config(data=given)  # pyright: ignore[reportArgumentType]


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().prefix = None  # pyright: ignore[reportAttributeAccessIssue]


def test_values_by_the_names_of_the_command_line():
    config = Config().replaced(
        {
            "prefix.length": 3,
            "train.seed": 5,
            "prefix.gate": True,
            "prefix.position_mode": "unshifted",
        }
    )
    assert (config.prefix.length, config.train.seed, config.prefix.gate) == (3, 5, True)
    assert config.replaced({}) == config
    assert config.replaced({"prefix.length": 10}).train == config.train
    with pytest.raises(InputError, match=r'no prefix.lenght.* mean "prefix.length"'):
        config.replaced({"prefix.lenght": 3})
    with pytest.raises(InputError, match=r'prefix.length is "3"; expected'):
        config.replaced({"prefix.length": "3"})


def test_a_subsample_needs_a_limit():
    assert DataConfig(validation_limit=3, subsample_seed=1).subsample_seed == 1
    with pytest.raises(InputError, match="subsample_seed is 1, but there is no"):
        DataConfig(subsample_seed=1)


def test_a_path_that_is_not_read_is_refused():
    with pytest.raises(
        InputError, match=r'data.path is "d" but .* "quickstart", which'
    ):
        DataConfig(source="quickstart", path="d")


def test_what_remat_keeps_is_said_with_remat_only():
    assert BackboneConfig(remat=True, remat_keeps="products").remat
    with pytest.raises(InputError, match=r"remat_keeps .*, but backbone\.remat is"):
        BackboneConfig(remat_keeps="products")
