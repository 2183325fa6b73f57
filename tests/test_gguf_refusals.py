"""GGUF files that are damaged, hostile, or of models that are not known here."""

import json
import re
import struct

import jax
import numpy as np
import pytest
from gguf_models import SHAPE, VARIANTS, random_model, write

from prefix_jax.errors import InputError
from prefix_jax.model.families import random_backbone
from prefix_jax.model.gguf_files import open_gguf
from prefix_jax.model.gguf_header import read_header
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.loading import load_backbone, load_config, load_tokenizer


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return random_model(request.param)


def test_what_is_not_known_is_refused(model, tmp_path):
    kind = model.config.model_type
    path = write(tmp_path / "a.gguf", model, values={f"{kind}.logit_scale": 2.0})
    with pytest.raises(InputError, match=rf"a\.gguf.*{kind}\.logit_scale"):
        load_backbone(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rope.dimension_sections", [4, 4, 0, 0], "not known here"),
        ("attention.sliding_window_pattern", [True, False], "not known here"),
        ("attention.sliding_window", [5, 5, 5], "is a list; expected one for all"),
    ],
)
def test_lists_are_not_passed_over(tmp_path, name, value, message):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / "a.gguf", backbone, values={f"llama.{name}": value})
    with pytest.raises(InputError, match=rf"a\.gguf: .*llama\.{name}.*{message}"):
        load_config(path)


def test_a_part_of_a_model_says_so(tmp_path):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / "a.gguf", backbone, values={"split.count": 2})
    with pytest.raises(InputError, match=r"one of 2 parts .* llama-gguf-split --merge"):
        load_config(path)


def test_all_tensors_are_there_before_one_is_read(tmp_path):
    """A cut is found, and a size that no file has, by whoever asks for the shape."""
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / "a.gguf", backbone)
    whole = path.read_bytes()
    path.write_bytes(whole[:-64])
    with pytest.raises(InputError, match="goes beyond its end"):
        load_config(path)
    name = b"token_embd.weight" + struct.pack("<I", 2)
    at = whole.index(name) + len(name)
    for rows, width, message in (
        (10**6, 32 * 10**6, "goes beyond its end"),
        (300, 33, "rows of 33 numbers, where its type Q8_0 has them 32 at a time"),
    ):
        kind = 8 if width == 33 else 0
        shape = struct.pack("<QQI", width, rows, kind)
        path.write_bytes(whole[:at] + shape + whole[at + len(shape) :])
        with pytest.raises(InputError, match=message):
            load_backbone(path)


def test_a_tensor_by_hugging_face_s_name_replaces_none(tmp_path):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    name = "layers.0.self_attn.q_proj.weight"
    more = {name: np.zeros((32, 32), np.float32)}
    path = write(tmp_path / "a.gguf", backbone, tensors=more)
    with pytest.raises(InputError, match=rf"tensor '{name}'.* not known"):
        load_backbone(path)


def test_a_tensor_that_is_missing_is_called_as_in_the_file(tmp_path):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / "a.gguf", backbone)
    data = path.read_bytes().replace(b"blk.2.ffn_down", b"blk.9.ffn_down")
    path.write_bytes(data)
    with pytest.raises(InputError, match="that it describes:") as caught:
        load_backbone(path)
    assert "blk.2.ffn_down.weight: missing" in str(caught.value)
    assert "blk.9.ffn_down.weight: unexpected" in str(caught.value)


def test_frequencies_of_another_size_are_refused(tmp_path):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    for shape in ((3,), (0, 5)):
        more = {"rope_freqs.weight": np.ones(shape, np.float32)}
        path = write(tmp_path / "a.gguf", backbone, tensors=more)
        with pytest.raises(InputError, match=r"^[^:]*a\.gguf: .*rope_freqs"):
            load_config(path)


def test_a_bias_that_a_family_has_not_is_named(tmp_path):
    config = LlamaConfig(**SHAPE | {"model_type": "qwen2"})
    backbone = random_backbone(config, key=jax.random.key(0))
    more = {"blk.0.attn_output.bias": np.zeros(32, np.float32)}
    path = write(tmp_path / "a.gguf", backbone, tensors=more)
    with pytest.raises(
        InputError, match=r"blk\.0\.attn_output\.bias.* a qwen2 has not"
    ):
        load_config(path)


def test_a_folder_with_such_a_file_alone_says_which(tmp_path):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / "a.gguf", backbone)
    with pytest.raises(InputError, match=rf"give that: {re.escape(str(path))}"):
        load_config(tmp_path)


def test_a_name_or_value_that_comes_twice_is_refused(tmp_path):
    name = struct.pack("<Q", 1) + b"a" + struct.pack("<II", 4, 7)
    long = struct.pack("<Q", 70_000) + b"a" * 70_000 + struct.pack("<II", 4, 7)
    path = tmp_path / "bad.gguf"
    for values, message in (([name, name], "'a' twice"), ([long], "longer than")):
        header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
        path.write_bytes(header + b"".join(values) + bytes(64))
        with pytest.raises(InputError, match=message):
            read_header(path)


def test_every_cut_is_found(model, tmp_path):
    whole = write(tmp_path / "whole.gguf", model).read_bytes()
    header = whole.index(b"ffn_down") + 100
    path = tmp_path / "cut.gguf"
    for size in [0, 3, 7, 20, *range(24, header, 53), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            load_backbone(path)


@pytest.mark.parametrize("number", [2**63, 2**32, 10**6])
@pytest.mark.parametrize("place", ["tensors", "values", "name", "list"])
def test_promises_beyond_the_file_are_refused_at_once(place, number, tmp_path):
    name = struct.pack("<Q", 1) + b"a"
    counts = {"tensors": (number, 0), "values": (0, number)}.get(place, (0, 1))
    data = b"GGUF" + struct.pack("<IQQ", 3, *counts)
    if place == "name":
        data += struct.pack("<Q", number) + b"a"
    if place == "list":
        data += name + struct.pack("<IIQ", 9, 8, number)
    path = tmp_path / "bad.gguf"
    path.write_bytes(data + bytes(64))
    with pytest.raises(InputError, match=r"^not a whole GGUF file"):
        read_header(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.gguf"
    path.write_text(json.dumps({}))
    for load in (load_backbone, load_config, load_tokenizer):
        with pytest.raises(InputError, match=r"^[^:]*other\.gguf: not a GGUF file"):
            load(path)


@pytest.mark.parametrize("key", ["context_length", "attention.layer_norm_rms_epsilon"])
def test_what_a_file_does_not_say_is_not_guessed(model, tmp_path, key):
    path = write(tmp_path / "a.gguf", model)
    name = f"{model.config.model_type}.{key}"
    other = f"general.{'x' * (len(name) - 8)}"
    path.write_bytes(path.read_bytes().replace(name.encode(), other.encode()))
    with pytest.raises(InputError, match=f"does not say {re.escape(name)}"):
        open_gguf(path)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_window_of_unknown_layers_is_refused(tmp_path, kind):
    config = LlamaConfig(**SHAPE, model_type=kind)
    backbone = random_backbone(config, key=jax.random.key(0))
    for size, message in ((5, "does not say which layers"), (0, None)):
        values = {f"{kind}.attention.sliding_window": size}
        path = write(tmp_path / f"{size}.gguf", backbone, values=values)
        if message is None:
            assert load_config(path).windows is None
            continue
        with pytest.raises(InputError, match=message):
            open_gguf(path)


def test_another_architecture_is_refused(model, tmp_path):
    path = write(tmp_path / "a.gguf", model)
    kind = model.config.model_type.encode()
    path.write_bytes(path.read_bytes().replace(kind, b"x" * len(kind)))
    with pytest.raises(InputError, match=r"its architecture is 'x+'; expected llama"):
        open_gguf(path)
