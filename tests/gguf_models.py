"""GGUF files as llama.cpp's converter writes them, of random models."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from families import GROUPED

from prefix_jax.model.backbone import Backbone
from prefix_jax.model.families import random_backbone
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.weights import _tensors

THEIRS = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SHAPE = {**GROUPED, "n_embd": 32, "n_inner": 64, "head_dim": 8}
"""Rows of 32 numbers, the blocks that GGUF's types share a scale in."""


def write(path, backbone, kind="F32", **more):
    """A file as llama.cpp's converter writes it."""
    config = backbone.config
    arch = config.model_type
    out = gguf.GGUFWriter(path, arch)
    out.add_vocab_size(config.vocab_size)
    out.add_block_count(config.n_layer)
    out.add_context_length(config.n_positions)
    out.add_embedding_length(config.n_embd)
    out.add_feed_forward_length(config.n_inner)
    out.add_head_count(config.n_head)
    out.add_head_count_kv(config.kv_heads)
    out.add_key_length(config.head_width)
    out.add_rope_dimension_count(config.head_width)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope.rope_theta)
    for name, value in more.get("values", {}).items():
        kinds = {str: "string", float: "float32", int: "uint32", list: "array"}
        getattr(out, f"add_{kinds[type(value)]}")(name, value)
    for name, tensor in _tensors(backbone).items():
        *before, module, suffix = name.split(".")
        if before[:1] == ["layers"]:
            prefix = f"blk.{before[1]}."
            module = ".".join([*before[2:], module])
        else:
            prefix = ""
        theirs = f"{prefix}{THEIRS[module]}.{suffix}"
        tensor = np.asarray(tensor, np.float32)
        if arch == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.n_head if "q_proj" in module else config.kv_heads
            halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        number = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(tensor), number)
        out.add_tensor(theirs, data, raw_dtype=number)
    for name, tensor in more.get("tensors", {}).items():
        out.add_tensor(name, tensor)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


VARIANTS = {
    "llama": {},
    "biases": {"attention_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
}


def random_model(variant: str) -> Backbone:
    """Every leaf random: biases are turned as their matrices are."""
    config = LlamaConfig(**SHAPE, **VARIANTS[variant])
    backbone = random_backbone(config, key=jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), backbone
    )
