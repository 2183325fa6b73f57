"""GGUF files of the Llama family: configuration and tensors as Hugging Face has them.

llama.cpp's one file for a model. The `gguf` package knows its types and dequantizes
them; its reader makes arrays of every word of the vocabulary, and believes what a file
promises, so the header is read here.
"""

import functools
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefix_jax.errors import InputError, first_line, shown
from prefix_jax.model.gguf_header import (
    Header,
    Tensor,
    damaged,
    naming_file,
    read_header,
)
from prefix_jax.model.llama_config import known_fields
from prefix_jax.model.naming import HEAD
from prefix_jax.model.rope import Rope
from prefix_jax.model.tensor_files import Stored

SUFFIX = ".gguf"

_TOP = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": HEAD.removesuffix(".weight"),
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""A file's names, behind that of its architecture, and `config.json`'s."""
_NEEDED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
)
_ELSEWHERE = {
    "vocab_size",
    "rope.dimension_count",
    "attention.value_length",
    "attention.sliding_window",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}
"""Further ones that are read."""
_ARCHITECTURES = "llama", "qwen2", "qwen3"
_FREQUENCIES = "rope_freqs.weight"
_INSTALL = "install it with: pip install 'prefix-jax[gguf]'"


class Model(NamedTuple):
    """What a file holds, in the terms of a Hugging Face folder."""

    config: dict[str, object]
    tensors: dict[str, Stored]


def open_gguf(path: Path) -> Model:
    """The model in a file; its tensors are dequantized to f32 when they are read.

    Raises InputError for other architectures, fields and types that are not known, and
    damaged files.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"{path} is a GGUF file, which the package gguf dequantizes; {_INSTALL}"
        )
    with naming_file(path):
        header = read_header(path)
        config = _config(path, header)
        return Model(config, _tensors(path, header, config))


def _config(path: Path, header: Header) -> dict[str, object]:
    """What a `config.json` would say."""
    values, tensors = header.values, header.tensors
    if values.get("split.count", 1) not in (0, 1):
        raise InputError(
            f"it is one of {shown(values['split.count'])} parts of a model; join them "
            "with llama.cpp's: llama-gguf-split --merge"
        )
    kind = values.get("general.architecture")
    if kind not in _ARCHITECTURES:
        raise InputError(
            f"its architecture is {shown(kind)}; expected {', '.join(_ARCHITECTURES)}"
        )
    own = {
        name.removeprefix(f"{kind}."): value
        for name, value in values.items()
        if name.startswith(f"{kind}.")
    }
    lists = {
        name.removeprefix(f"{kind}.")
        for name in header.lists
        if name.startswith(f"{kind}.")
    }
    if unknown := sorted((own.keys() | lists) - _SIZES.keys() - _ELSEWHERE):
        raise InputError(
            f"it has {', '.join(f'{kind}.{name}' for name in unknown)}, which may "
            "change what the model computes and is not known here"
        )
    for key in sorted(lists):  # which GGUF has where layers differ
        raise InputError(f"{kind}.{key} is a list; expected one for all layers")
    for key in _NEEDED:
        if key not in own:
            raise InputError(f"it does not say {kind}.{key}; convert the model again")
    # A file has no word for which layers have it, and other readers pass over it.
    if window := own.get("attention.sliding_window"):
        raise InputError(
            f"{kind}.attention.sliding_window is {shown(window)}, but it does not say "
            "which layers have one; use the model's safetensors"
        )
    config: dict[str, Any] = {
        name: _decimal(own[key]) for key, name in _SIZES.items() if key in own
    }
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError("it has no matrix token_embd.weight; convert the model again")
    config["vocab_size"] = embedding.shape[0]
    width = own.get("rope.dimension_count")
    config.setdefault("head_dim", width)
    for name in ("rope.dimension_count", "attention.value_length"):
        if own.get(name) not in (None, config["head_dim"]):
            raise InputError(
                f"{kind}.{name} is {shown(own[name])}, but heads have "
                f"{shown(config['head_dim'])} numbers; expected the same"
            )
    config["model_type"] = kind
    config["rope_parameters"] = _rope(path, header, own, config["head_dim"])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for name, bias in (("attention_bias", "attn_output"), ("mlp_bias", "ffn_up")):
        tensor = f"blk.0.{bias}.bias"
        if tensor in tensors and name not in known_fields(kind):
            raise InputError(f"it has {tensor}, a bias that a {kind} has not")
        config[name] = tensor in tensors
    config = {name: value for name, value in config.items() if value is not None}
    bos, *ends = (
        values.get(f"tokenizer.ggml.{role}_token_id")
        for role in ("bos", "eos", "eot", "eom")
    )
    # None, where it names none: no model's usual ones.
    config["bos_token_id"] = bos
    eos, *others = ends
    more = [end for end in dict.fromkeys(others) if end not in (None, eos)]
    config["eos_token_id"] = [eos, *more] if more else eos
    return config


def _decimal(value: object) -> object:
    """The number that was written, where f32 holds it as 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(
    path: Path, header: Header, own: Mapping[str, Any], width: object
) -> dict[str, object]:
    # A factor alone is llama.cpp's "linear".
    usual = "linear" if "rope.scaling.factor" in own else "none"
    given = own.get("rope.scaling.type", usual)
    rope: dict[str, object] = {} if given == "none" else {"rope_type": given}
    names = {
        "factor": "rope.scaling.factor",
        "original_max_position_embeddings": "rope.scaling.original_context_length",
    }
    if given == "linear":
        del names["original_max_position_embeddings"]
    if rope:
        rope |= {name: own[key] for name, key in names.items() if key in own}
    factors = header.tensors.get(_FREQUENCIES)
    if factors is None:
        return rope
    theta = own.get("rope.freq_base", 10_000.0)
    pairs = [width // 2] if isinstance(width, int) else None
    if rope or not isinstance(theta, float) or list(factors.shape) != pairs:
        raise InputError(
            f"it has {_FREQUENCIES} of {list(factors.shape)} numbers, "
            f"rope.scaling.type {shown(given)} and rope.freq_base {shown(theta)} for "
            f"heads of {shown(width)}; expected half as many, no scaling and a number"
        )
    return _llama3(theta, _read(path, _FREQUENCIES, factors, header.start))


def _llama3(theta: float, factors: np.ndarray) -> dict[str, object]:
    """Llama 3's way to stretch positions, of which a file has the result only.

    `factors`: by how much each pair is slowed down.
    All of its releases differ in one factor alone, which the slowest pair has whole.
    """
    factors = np.asarray(factors, np.float64)
    found: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": float(factors.max(initial=1)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, _ = Rope(rope_theta=theta).inv_freq(2 * factors.size)
    stretched, _ = Rope(rope_theta=theta, **found).inv_freq(2 * factors.size)
    if not np.allclose(stretched * factors, plain, rtol=1e-4):
        raise InputError(
            f"its {_FREQUENCIES} are not those of Llama 3 (low_freq_factor 1, "
            "high_freq_factor 4, 8192 positions), the only ones known here"
        )
    return found


def _tensors(
    path: Path, header: Header, config: Mapping[str, Any]
) -> dict[str, Stored]:
    """By Hugging Face's names and in its order of numbers."""
    found = {}
    for name, tensor in header.tensors.items():
        _extent(path, name, tensor, header.start)
        if name == _FREQUENCIES:
            continue
        theirs = _theirs(name)
        if theirs is None:
            raise InputError(
                f"it has the tensor {shown(name)}, which is not known here"
            )
        heads = None
        # llama.cpp turns neighbouring numbers of these, Hugging Face the halves.
        if config["model_type"] == "llama":
            role = name.split(".")[2] if name.count(".") == 3 else ""
            queries, shared = "num_attention_heads", "num_key_value_heads"
            heads = {"attn_q": config[queries], "attn_k": config[shared]}.get(role)
        read = functools.partial(_read_named, path, name, tensor, header.start, heads)
        found[theirs] = Stored(tensor.shape, "F32", read)
    return found


def _theirs(name: str) -> str | None:
    """Hugging Face's name; None for a tensor that the family has not."""
    match name.split("."):
        case ["blk", layer, part, kind] if part in _LAYER:
            return f"layers.{layer}.{_LAYER[part]}.{kind}"
        case [part, kind] if part in _TOP:
            return f"{_TOP[part]}.{kind}"
    return None


def is_gguf(path: Path) -> bool:
    """Whether a file is one, by its name or by how it begins."""
    if path.suffix.lower() == SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def name_in_gguf(theirs: str) -> str:
    """What the tensor that Hugging Face calls so is called in a file."""
    *before, kind = theirs.split(".")
    if before[:1] == ["layers"]:
        parts = {name: part for part, name in _LAYER.items()}
        return f"blk.{before[1]}.{parts['.'.join(before[2:])]}.{kind}"
    parts = {name: part for part, name in _TOP.items()}
    return f"{parts['.'.join(before)]}.{kind}"


def _extent(path: Path, name: str, tensor: Tensor, start: int) -> tuple[int, int]:
    """The first byte of a tensor and their number; InputError unless all are there."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
        block, width = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise InputError(
            f"{shown(name)} is of type {tensor.kind}, which is not known"
        ) from None
    if tensor.shape and tensor.shape[-1] % block:
        raise InputError(
            damaged(
                f"{shown(name)} has rows of {tensor.shape[-1]:,} numbers, where its "
                f"type {kind.name} has them {block} at a time"
            )
        )
    first = start + tensor.start
    length = math.prod(tensor.shape) // block * width
    if first + length > path.stat().st_size:
        raise InputError(damaged(f"{shown(name)} goes beyond its end"))
    return first, length


def _read_named(path: Path, *tensor: Any) -> np.ndarray:
    with naming_file(path):
        return _read(path, *tensor)


def _read(
    path: Path, name: str, tensor: Tensor, start: int, heads: int | None = None
) -> np.ndarray:
    """The tensor in f32, of the whole file's bytes only."""
    import gguf

    first, length = _extent(path, name, tensor, start)
    kind = gguf.GGMLQuantizationType(tensor.kind)
    data = np.fromfile(path, np.uint8, length, offset=first)
    rows = data.reshape(*tensor.shape[:-1], -1)
    try:
        array = gguf.quants.dequantize(rows, kind)
    except Exception as error:
        raise InputError(
            f"{shown(name)} is of type {kind.name}, which cannot be turned into "
            f"floating point ({first_line(error)})"
        ) from error
    array = np.asarray(array, np.float32).reshape(tensor.shape)
    if heads is None:
        return array
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
