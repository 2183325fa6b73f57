"""The families of backbones, chosen by a checkpoint's `config.json`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Unpack

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from prefix_jax.errors import InputError, shown
from prefix_jax.model import gpt2_config, gpt2_weights, llama_config, llama_weights
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.llama import Llama
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.naming import Names
from prefix_jax.model.passes import How
from prefix_jax.model.shape import Shape, unknown_fields


class Family(NamedTuple):
    """What a module of layers, one of their configuration and one of names give."""

    config: type[Shape]
    backbone: Callable[..., Backbone]
    """Of a configuration, with random weights; see `random_backbone`."""
    names: Names


_GPT2 = Family(GPT2Config, GPT2, gpt2_weights.NAMES)
_LLAMA = Family(LlamaConfig, Llama, llama_weights.NAMES)
FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""By the `model_type` of transformers."""


RELEASED: dict[str, Shape] = {**gpt2_config.RELEASED, **llama_config.RELEASED}
"""Shapes of models that are known without a look at any file, by name."""


def shape_of(values: Mapping) -> Shape:
    """From the contents of a `config.json`.

    One without a model_type is a GPT-2's, if it has that model's fields only. Raises
    InputError for a model of no family here, and for fields that a family does not know
    how to honour.
    """
    kind = values.get("model_type", "gpt2")
    if "model_type" not in values:
        others = unknown_fields(values, gpt2_config.known_fields())
        if others or not values:
            has = f", and {shown(others[0])} is no field of a GPT-2" if others else ""
            raise InputError(
                f"there is no model_type{has}; add the one that it is of: "
                f"{', '.join(FAMILIES)}"
            )
    if not isinstance(kind, str) or kind not in FAMILIES:
        # Nothing is proposed: a mixtral is near a mistral in letters only.
        raise InputError(
            f"model_type is {shown(kind)}; expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind].config.from_dict(values)


def family_of(config: Shape) -> Family:
    """The one that a configuration belongs to."""
    return next(x for x in FAMILIES.values() if isinstance(config, x.config))


def random_backbone(
    config: Shape,
    *,
    key: PRNGKeyArray,
    dtype: jnp.dtype | str = "float32",
    **how: Unpack[How],
) -> Backbone:
    """Random weights, as training from scratch starts with, in f32."""
    return family_of(config).backbone(config, key=key, dtype=dtype, **how)
