"""Prompts, ways to decode them and prefixes, for the tests of decoding."""

import dataclasses

import jax

from prefix_jax.config import DecodeConfig
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig

NEW = 10
PROMPTS = ["The mill", "by the river is old and", "name", "area : riverside"]
METHODS = {
    "greedy": DecodeConfig(),
    "sample": DecodeConfig(method="sample", sequences=2, top_p=0.9),
    "beam": DecodeConfig(method="beam", beams=3, sequences=3),
}


def make_prefix(backbone, length, mode="shifted", seed=3):
    config = PrefixConfig(init="random", length=length, position_mode=mode)
    return init_prefix(backbone, config, key=jax.random.key(seed))()


def decode(settings, **others):
    return dataclasses.replace(settings, max_new_tokens=NEW, **others)
