"""GGUF files of the Llama family: configuration and tensors as Hugging Face has them.

llama.cpp's one file for a model. The `gguf` package reads and dequantizes it; what is
ours is what the names mean, and that no file makes the reader run on without end.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefix_jax.errors import InputError, first_line, shortened, shown
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
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number, by GGUF's number of its type."""
_STRING, _ARRAY = 8, 9
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
    reader = _open(path)
    try:
        values = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.ggml.") or name.endswith("_token_id")
        }
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config = _config(values, tensors)
        return Model(config, _tensors(path, tensors, config))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def check_gguf(path: Path) -> None:
    """InputError unless the file's counts and lengths are what its bytes can hold.

    Readers believe them, and would count to 2^64.
    """
    size = path.stat().st_size
    with path.open("rb") as file:

        def read(form: str) -> int:
            data = file.read(struct.calcsize(form))
            if len(data) < struct.calcsize(form):
                raise InputError(_damaged(path, "it ends in the middle"))
            return struct.unpack(form, data)[0]

        def skip(number: int) -> None:
            if number > size - file.tell():
                raise InputError(
                    _damaged(path, f"it promises {number:,} more bytes than it has")
                )
            file.seek(number, 1)

        def skip_value(kind: int) -> None:
            if kind == _STRING:
                skip(read("<Q"))
            elif kind in _WIDTHS:
                skip(_WIDTHS[kind])
            else:
                raise InputError(_damaged(path, f"it has a value of type {kind}"))

        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file; it does not begin with GGUF")
        version = read("<I")
        if version not in (2, 3):
            raise InputError(f"{path} is GGUF of version {version}; expected 2 or 3")
        tensors, values = read("<Q"), read("<Q")
        # Each takes more bytes than one.
        for number in (tensors, values):
            if number > size:
                raise InputError(_damaged(path, f"it promises {number:,} entries"))
        for _ in range(values):
            skip(read("<Q"))
            kind = read("<I")
            if kind != _ARRAY:
                skip_value(kind)
                continue
            kind, number = read("<I"), read("<Q")
            if kind in _WIDTHS:
                skip(number * _WIDTHS[kind])
                continue
            if number > size:
                raise InputError(_damaged(path, f"it promises a list of {number:,}"))
            for _ in range(number):
                skip_value(kind)
        for _ in range(tensors):
            skip(read("<Q"))
            skip(8 * read("<I") + 4 + 8)


def _damaged(path: Path, what: str) -> str:
    return f"{path} is not a whole GGUF file ({what}); copy or download it again"


def _open(path: Path):
    try:
        import gguf
    except ImportError:
        raise InputError(
            f"{path} is a GGUF file, which the package gguf reads; {_INSTALL}"
        ) from None
    check_gguf(path)
    try:
        return gguf.GGUFReader(path)
    # On what is no GGUF file it fails in any way there is.
    except Exception as error:
        raise InputError(_damaged(path, first_line(error))) from error


def _config(values: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, object]:
    """What a `config.json` would say."""
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
    heads = config.get("num_key_value_heads")
    if isinstance(heads, list):
        raise InputError("its layers have different numbers of heads; expected one")
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError("it has no matrix token_embd.weight")
    config["vocab_size"] = int(embedding.shape[1])
    width = own.get("rope.dimension_count")
    config.setdefault("head_dim", width)
    for name in ("rope.dimension_count", "attention.value_length"):
        if own.get(name) not in (None, config["head_dim"]):
            raise InputError(
                f"{kind}.{name} is {shown(own[name])}, but heads have "
                f"{shown(config['head_dim'])} numbers; expected the same"
            )
    config["model_type"] = "mistral" if "sliding_window" in config else kind
    if kind.startswith("qwen"):
        config["model_type"] = kind
        config["use_sliding_window"] = "sliding_window" in config
    config["rope_parameters"] = _rope(own, tensors)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for name, bias in (("attention_bias", "attn_output"), ("mlp_bias", "ffn_up")):
        config[name] = f"blk.0.{bias}.bias" in tensors
    for role in ("bos", "eos"):
        config[f"{role}_token_id"] = values.get(f"tokenizer.ggml.{role}_token_id")
    return {name: value for name, value in config.items() if value is not None}


def _decimal(value: object) -> object:
    """The number that was written, where f32 holds it as 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(own: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, object]:
    given = own.get("rope.scaling.type", "none")
    rope: dict[str, object] = {} if given == "none" else {"rope_type": given}
    names = {
        "factor": "rope.scaling.factor",
        "original_max_position_embeddings": "rope.scaling.original_context_length",
    }
    if rope:
        rope |= {name: own[key] for name, key in names.items() if key in own}
    if _FREQUENCIES in tensors:
        rope |= _llama3(own, np.asarray(tensors[_FREQUENCIES].data, np.float64))
    return rope


def _llama3(own: Mapping[str, Any], slower: np.ndarray) -> dict[str, object]:
    """Llama 3's way to stretch positions, of which a file has the result only.

    All of its releases differ in the factor alone, which the slowest pair has whole.
    """
    theta = float(own.get("rope.freq_base", 10_000.0))
    found: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": float(slower.max(initial=1)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    width = 2 * slower.size
    plain, _ = Rope(rope_theta=theta).speeds(width)
    stretched, _ = Rope(rope_theta=theta, **found).speeds(width)
    if slower.ndim != 1 or not np.allclose(plain / slower, stretched, rtol=1e-4):
        raise InputError(
            f"its {_FREQUENCIES} are not those of Llama 3 (low_freq_factor 1, "
            "high_freq_factor 4, 8192 positions), the only ones known here"
        )
    return found


def _tensors(
    path: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Stored]:
    """By Hugging Face's names and in its order of numbers."""
    found = {}
    for name, tensor in tensors.items():
        if name == _FREQUENCIES:
            continue
        heads = None
        # llama.cpp turns neighbouring numbers of these, Hugging Face the halves.
        if config["model_type"] in ("llama", "mistral"):
            role = name.split(".")[2] if name.count(".") == 3 else ""
            queries = config.get("num_attention_heads")
            shared = config.get("num_key_value_heads", queries)
            heads = {"attn_q": queries, "attn_k": shared}.get(role)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        found[_theirs(name)] = Stored(shape, "F32", _reading(path, tensor, heads))
    return found


def _theirs(name: str) -> str:
    """Hugging Face's name; the same where there is none, which the reader refuses."""
    *before, part, kind = name.split(".") if "." in name else ("", name, "")
    if before[:1] == ["blk"] and len(before) == 2 and part in _LAYER:
        return f"layers.{before[1]}.{_LAYER[part]}.{kind}"
    if not before and part in _TOP:
        return f"{_TOP[part]}.{kind}"
    return name


def _reading(path: Path, tensor, heads: int | None):
    """A function that gives the tensor in f32."""

    def read() -> np.ndarray:
        from gguf.quants import dequantize

        name = shortened(tensor.name)
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except Exception as error:
            raise InputError(
                f"{path}: {name} is of type {tensor.tensor_type.name}, which cannot be "
                f"turned into floating point ({first_line(error)})"
            ) from error
        array = np.asarray(array, np.float32)
        if heads is None:
            return array
        rows = array.reshape(heads, -1, 2, *array.shape[1:])
        return rows.swapaxes(1, 2).reshape(array.shape)

    return read
