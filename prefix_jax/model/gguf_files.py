"""GGUF files of the Llama family: configuration and tensors as Hugging Face has them.

llama.cpp's one file for a model. The `gguf` package knows its types and dequantizes
them; its reader makes arrays of every word of the vocabulary, and believes what a file
promises, so the header is read here.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefix_jax.errors import InputError, first_line, shown
from prefix_jax.model.gguf_header import Header, Tensor, damaged, read_header
from prefix_jax.model.rope import Rope
from prefix_jax.model.tensor_files import Stored

SUFFIX = ".gguf"

_TOP = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
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
    "attention.sliding_window": "sliding_window",
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
    header = read_header(path)
    try:
        config = _config(path, header)
        return Model(config, _tensors(path, header, config))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _config(path: Path, header: Header) -> dict[str, object]:
    """What a `config.json` would say."""
    values, tensors = header.values, header.tensors
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
    if unknown := sorted(own.keys() - _SIZES.keys() - _ELSEWHERE):
        raise InputError(
            f"it has {', '.join(f'{kind}.{name}' for name in unknown)}, which may "
            "change what the model computes and is not known here"
        )
    config: dict[str, Any] = {
        name: _decimal(own[key]) for key, name in _SIZES.items() if key in own
    }
    for key in _NEEDED:
        if key not in own:  # or it is a list, which GGUF has where layers differ
            raise InputError(f"it does not say {kind}.{key}, one for all layers")
    if kind.startswith("qwen") and "sliding_window" in config:
        raise InputError(
            f"it has {kind}.attention.sliding_window, but does not say which layers do"
        )
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError("it has no matrix token_embd.weight")
    config["vocab_size"] = embedding.shape[0]
    width = own.get("rope.dimension_count")
    config.setdefault("head_dim", width)
    for name in ("rope.dimension_count", "attention.value_length"):
        if own.get(name) not in (None, config["head_dim"]):
            raise InputError(
                f"{kind}.{name} is {shown(own[name])}, but heads have "
                f"{shown(config['head_dim'])} numbers; expected the same"
            )
    config["model_type"] = "mistral" if "sliding_window" in config else kind
    slower = None
    if _FREQUENCIES in tensors:
        slower = _reading(path, _FREQUENCIES, tensors[_FREQUENCIES], header.start)()
    config["rope_parameters"] = _rope(own, slower, config["head_dim"])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for name, bias in (("attention_bias", "attn_output"), ("mlp_bias", "ffn_up")):
        config[name] = f"blk.0.{bias}.bias" in tensors
    for role in ("bos", "eos"):
        config[f"{role}_token_id"] = values.get(f"tokenizer.ggml.{role}_token_id")
    return {name: value for name, value in config.items() if value is not None}


def _decimal(value: object) -> object:
    """The number that was written, where f32 holds it as 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(
    own: Mapping[str, Any], slower: np.ndarray | None, width: object
) -> dict[str, object]:
    # A factor alone is llama.cpp's "linear".
    usual = "linear" if "rope.scaling.factor" in own else "none"
    given = own.get("rope.scaling.type", usual)
    rope: dict[str, object] = {} if given == "none" else {"rope_type": given}
    names = {
        "factor": "rope.scaling.factor",
        "original_max_position_embeddings": "rope.scaling.original_context_length",
    }
    if rope:
        rope |= {name: own[key] for name, key in names.items() if key in own}
    if slower is None:
        return rope
    theta = own.get("rope.freq_base", 10_000.0)
    if rope or not isinstance(theta, float) or 2 * slower.size != width:
        raise InputError(
            f"it has {_FREQUENCIES} of {slower.size} numbers, rope.scaling.type "
            f"{shown(given)} and rope.freq_base {shown(theta)} for heads of "
            f"{shown(width)}; expected half as many, no scaling and a number"
        )
    return _llama3(theta, np.asarray(slower, np.float64))


def _llama3(theta: float, slower: np.ndarray) -> dict[str, object]:
    """Llama 3's way to stretch positions, of which a file has the result only.

    All of its releases differ in the factor alone, which the slowest pair has whole.
    """
    found: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": float(slower.max(initial=1)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, _ = Rope(rope_theta=theta).inv_freq(2 * slower.size)
    stretched, _ = Rope(rope_theta=theta, **found).inv_freq(2 * slower.size)
    if slower.ndim != 1 or not np.allclose(stretched * slower, plain, rtol=1e-4):
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
        if name == _FREQUENCIES:
            continue
        heads = None
        # llama.cpp turns neighbouring numbers of these, Hugging Face the halves.
        if config["model_type"] in ("llama", "mistral"):
            role = name.split(".")[2] if name.count(".") == 3 else ""
            queries, shared = "num_attention_heads", "num_key_value_heads"
            heads = {"attn_q": config[queries], "attn_k": config[shared]}.get(role)
        read = _reading(path, name, tensor, header.start, heads)
        found[_theirs(name)] = Stored(tensor.shape, "F32", read)
    return found


def _theirs(name: str) -> str:
    """Hugging Face's name; the same where there is none, which the reader refuses."""
    *before, part, kind = name.split(".") if "." in name else ("", name, "")
    if before[:1] == ["blk"] and len(before) == 2 and part in _LAYER:
        return f"layers.{before[1]}.{_LAYER[part]}.{kind}"
    if not before and part in _TOP:
        return f"{_TOP[part]}.{kind}"
    return name


def _reading(
    path: Path, name: str, tensor: Tensor, start: int, heads: int | None = None
) -> Callable[[], np.ndarray]:
    """A function that gives the tensor in f32, of the whole file's bytes only."""

    def read() -> np.ndarray:
        import gguf

        try:
            kind = gguf.GGMLQuantizationType(tensor.kind)
            block, width = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise InputError(
                f"{path}: {shown(name)} is of type {tensor.kind}, which is not known"
            ) from None
        count = math.prod(tensor.shape)
        first, length = start + tensor.start, count // block * width
        if first + length > path.stat().st_size or (
            tensor.shape and tensor.shape[-1] % block
        ):
            raise InputError(damaged(path, f"{shown(name)} goes beyond its end"))
        data = np.fromfile(path, np.uint8, length, offset=first)
        rows = data.reshape(*tensor.shape[:-1], -1)
        try:
            array = gguf.quants.dequantize(rows, kind)
        except Exception as error:
            raise InputError(
                f"{path}: {shown(name)} is of type {kind.name}, which cannot be turned "
                f"into floating point ({first_line(error)})"
            ) from error
        array = np.asarray(array, np.float32).reshape(tensor.shape)
        if heads is None:
            return array
        pairs = array.reshape(heads, -1, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    return read
