"""PEFT's layout of a prefix: one tensor, and a description of its shape.

    PREFIX_TUNING  prompt_embeddings  [P L*2*D]  column ((2 * layer + kv) * H + head)
                                                 * K + d, kv 0 = key, 1 = value
    PROMPT_TUNING  prompt_embeddings  [P D]

The original repository, `adapters` and P-tuning v2 order their columns alike.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prefix_jax.errors import InputError
from prefix_jax.model.kv import KV
from prefix_jax.model.shape import Shape
from prefix_jax.model.tensor_files import FLOATS, open_tensors, save_tensors

TENSOR = "prompt_embeddings"

Kind = Literal["prefix", "embedding"]
PEFT_TYPES: dict[Kind, str] = {"prefix": "PREFIX_TUNING", "embedding": "PROMPT_TUNING"}


def to_tensor(kv: KV, config: Shape) -> Float[np.ndarray, "P C"]:
    """PEFT's tensor, f32, of one prefix for a backbone of this shape; C = L*2*H*K.

    Raises InputError for a bank of prefixes, or another backbone's.
    """
    kv.check_shape(config)
    if kv.number != 1:
        raise InputError(
            f"a bank of {kv.number} prefixes cannot be stored in one folder; store one "
            "at a time"
        )
    pair = np.stack([np.asarray(kv.keys[:, 0]), np.asarray(kv.values[:, 0])], axis=1)
    positions_first = pair.astype(np.float32).transpose(2, 0, 1, 3, 4)  # P L 2 H K
    return np.ascontiguousarray(positions_first).reshape(kv.length, -1)


def from_tensor(tensor: Float[np.ndarray, "P C"], config: Shape) -> KV:
    """The inverse of `to_tensor`; how the text sees it is for the caller to say."""
    shape = (len(tensor), config.n_layer, 2, config.kv_heads, config.head_width)
    keys, values = tensor.reshape(shape).transpose(2, 1, 0, 3, 4)
    return KV(jnp.asarray(keys[:, None]), jnp.asarray(values[:, None]))


def adapter_config(
    config: Shape, length: int, name: str | None, kind: Kind = "prefix"
) -> dict[str, object]:
    """PEFT's `adapter_config.json`: what it needs, and what older releases need too."""
    described: dict[str, object] = {
        "peft_type": PEFT_TYPES[kind],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "inference_mode": True,
        "num_virtual_tokens": length,
        "num_layers": config.n_layer,
        "num_transformer_submodules": 1,
    }
    if kind == "embedding":
        heads = {"token_dim": config.n_embd, "num_attention_heads": config.n_head}
        return described | heads
    # Of a prefix they are those of keys and values, where queries have more heads.
    return described | {
        "token_dim": config.kv_width,
        "num_attention_heads": config.kv_heads,
        "encoder_hidden_size": config.kv_width,
        "prefix_projection": False,
    }


def differing(described: Mapping[str, object], config: Shape) -> list[str]:
    """In words, where an `adapter_config.json` describes another backbone's shape.

    PEFT's names of it, and AdapterHub's.
    """
    embeddings = described.get("peft_type") == PEFT_TYPES["embedding"]
    shape = {
        "num_layers": config.n_layer,
        "num_attention_heads": config.n_head if embeddings else config.kv_heads,
        "token_dim": config.n_embd if embeddings else config.kv_width,
        "hidden_size": config.n_embd,
        "model_type": config.fields()["model_type"],
    }
    return [
        f"{field} {described[field]!r} there, {value!r} here"
        for field, value in shape.items()
        if described.get(field) not in (None, value)
    ]


def check_tensor(
    tensor: Float[np.ndarray, "..."],
    origin: str,
    config: Shape,
    kind: Kind = "prefix",
) -> None:
    """InputError unless the tensor is finite and of the backbone's shape."""
    prefix = kind == "prefix"
    expected = config.n_layer * 2 * config.kv_width if prefix else config.n_embd
    if tensor.ndim != 2 or tensor.shape[1] != expected or not len(tensor):
        raise InputError(
            f"{origin} has shape {list(tensor.shape)}; this backbone ({config.n_layer} "
            f"layers, {config.kv_heads} heads, width {config.kv_width}) needs "
            f"[positions, {expected}]"
        )
    bad = tensor.size - int(np.isfinite(tensor).sum())
    if bad:
        raise InputError(
            f"{bad} of {tensor.size} numbers in {origin} are NaN or infinite; training "
            "diverged or the file is damaged: lower the learning rate, or take an "
            "earlier prefix"
        )


def write_tensor(path: Path, tensor: Float[np.ndarray, "P C"]) -> None:
    """A safetensors file as PEFT writes it."""
    save_tensors({TENSOR: tensor}, path)


def read_tensor(path: Path) -> Float[np.ndarray, "..."]:
    """The tensor of a file, in f32. InputError for anything else in it, or damage."""
    if not path.is_file():
        hint = ""
        if (path.parent / "adapter_model.bin").exists():
            hint = (
                "; adapter_model.bin beside it is a pickle: `prefix-jax import` reads "
                "it, with torch"
            )
        raise InputError(f"{path} is missing{hint}")
    tensors = open_tensors(path)
    if list(tensors) != [TENSOR]:
        names = ", ".join(sorted(tensors)[:8]) or "(none)"
        raise InputError(f"{path} holds the tensors {names}; expected {TENSOR} alone")
    stored = tensors[TENSOR]
    if stored.dtype not in FLOATS:
        raise InputError(
            f"{path}: {TENSOR} is {stored.dtype}; expected {', '.join(FLOATS)}"
        )
    return stored.read_f32()
