"""Prefix-tuning in JAX: one frozen language model, many small prefixes."""

import os

from etils import epy

# Else transformers greets everybody with the news that there is no
# PyTorch, which reads like a fault.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# Each is imported when it is first used: `prefix-jax --help` needs no jax.
with epy.lazy_api_imports(globals()):
    from prefix_jax.config import (
        BackboneConfig,
        Config,
        DecodeConfig,
        MeshConfig,
        OptimConfig,
        TrainConfig,
    )
    from prefix_jax.data.tokens import encode_prompts
    from prefix_jax.data_config import DataConfig
    from prefix_jax.decoding.generate import (
        each_sequences,
        generate,
        generate_sequences,
        stream,
    )
    from prefix_jax.decoding.request import Generated
    from prefix_jax.errors import InputError
    from prefix_jax.learning.optim import make_optimizer
    from prefix_jax.learning.split import merge, split
    from prefix_jax.learning.step import (
        TrainState,
        init_train_state,
        make_eval_step,
        make_train_step,
    )
    from prefix_jax.mesh import make_mesh
    from prefix_jax.model.backbone import Backbone
    from prefix_jax.model.compose import average, bank, concatenate, interpolate
    from prefix_jax.model.families import random_backbone
    from prefix_jax.model.gpt2 import GPT2
    from prefix_jax.model.gpt2_config import GPT2Config
    from prefix_jax.model.kv import KV
    from prefix_jax.model.llama import Llama
    from prefix_jax.model.llama_config import LlamaConfig
    from prefix_jax.model.loading import load_backbone, load_tokenizer
    from prefix_jax.model.prefix import init_prefix
    from prefix_jax.model.weights import save_backbone
    from prefix_jax.prefix_config import PrefixConfig
    from prefix_jax.score_config import ScoreConfig
    from prefix_jax.storage.artifact import load_embeddings, load_prefix, save_prefix
    from prefix_jax.storage.exporting import export_prefix
    from prefix_jax.storage.importing import import_prefix
    from prefix_jax.storage.shortening import shorten_prefix

__all__ = [
    "GPT2",
    "KV",
    "Backbone",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "GPT2Config",
    "Generated",
    "InputError",
    "Llama",
    "LlamaConfig",
    "MeshConfig",
    "OptimConfig",
    "PrefixConfig",
    "ScoreConfig",
    "TrainConfig",
    "TrainState",
    "average",
    "bank",
    "concatenate",
    "each_sequences",
    "encode_prompts",
    "export_prefix",
    "generate",
    "generate_sequences",
    "import_prefix",
    "init_prefix",
    "init_train_state",
    "interpolate",
    "load_backbone",
    "load_embeddings",
    "load_prefix",
    "load_tokenizer",
    "make_eval_step",
    "make_mesh",
    "make_optimizer",
    "make_train_step",
    "merge",
    "random_backbone",
    "save_backbone",
    "save_prefix",
    "shorten_prefix",
    "split",
    "stream",
]
