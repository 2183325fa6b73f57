"""A small random backbone of each family, for the laws that hold of all."""

import jax
import pytest

from prefix_jax.model.backbone import Backbone
from prefix_jax.model.families import random_backbone
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.llama_config import LlamaConfig

SHAPE = {
    "vocab_size": 300,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GROUPED = SHAPE | {"n_inner": 48, "num_key_value_heads": 2, "initializer_range": 0.15}
CONFIGS = {
    "gpt2": GPT2Config(**SHAPE),
    # Heads wider than their share of n_embd, as some releases have them.
    "llama": LlamaConfig(**GROUPED, head_dim=16, tie_word_embeddings=True),
    "windows": LlamaConfig(
        **GROUPED,
        model_type="qwen3",
        head_dim=16,
        attention_bias=True,
        sliding_window=5,
        layer_types=("full_attention", "sliding_attention", "sliding_attention"),
    ),
}
each_family = pytest.mark.parametrize(
    "backbone",
    [
        # What it has "windows" has too, but for its tied head.
        pytest.param(name, marks=pytest.mark.slow if name == "llama" else ())
        for name in CONFIGS
    ],
    indirect=True,
)
"""A test, or the fixtures it takes, of the fixture `backbone`."""
grouped_too = pytest.mark.parametrize("backbone", ["gpt2", "llama"], indirect=True)
"""The same, without windows: where these make what is compared another thing."""


def make(family: str) -> Backbone:
    return random_backbone(CONFIGS[family], key=jax.random.key(0))
