"""Weights with PyTorch: its pickles, and transformers' files both ways."""

import json
import os
import pickle
import re
import resource
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import TOKENS, assert_same, random_backbone
from safetensors.numpy import load_file

from prefix_jax.errors import InputError
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.tensor_files import save_tensors
from prefix_jax.model.weights import save_backbone

# With PyTorch.


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def pickle_weights(torch, folder, change=lambda tensors: tensors, **options):
    """Replace the folder's safetensors by a pytorch_model.bin."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(change(tensors), folder / "pytorch_model.bin", **options)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights(zipped, torch, folder, small):
    pickle_weights(torch, folder, _use_new_zipfile_serialization=zipped)
    assert_same(load_backbone(folder), small)


def test_pickled_bfloat16(torch, folder, small):
    pickle_weights(torch, folder, lambda x: {k: v.bfloat16() for k, v in x.items()})
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), small)
    assert_same(load_backbone(folder), expected)


def test_pickled_shards(torch, folder, small):
    tensors = load_file(folder / "model.safetensors")
    pickle_weights(torch, folder)
    (folder / "pytorch_model.bin").unlink()
    files = {name: f"pytorch_model-{len(name) % 2}.bin" for name in tensors}
    for file in set(files.values()):
        part = {k: torch.from_numpy(v) for k, v in tensors.items() if files[k] == file}
        torch.save(part, folder / file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert_same(load_backbone(folder), small)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_a_pickle_that_runs_code_is_refused(zipped, torch, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if zipped is None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(
            pickle.dumps({"wte": Bomb()}, protocol=2)
        )
    else:
        pickle_weights(
            torch,
            folder,
            lambda x: x | {"bomb": Bomb()},
            _use_new_zipfile_serialization=zipped,
        )
    with pytest.raises(InputError, match="could run code; refused"):
        load_backbone(folder)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: list(x.values()), "holds list; expected named tensors"),
        (lambda x: x | {"step": 3}, "step is int; expected only tensors"),
        (lambda x: {k: v.int() for k, v in x.items()}, "found torch.int32, expected"),
    ],
)
def test_pickles_of_other_things(change, message, torch, folder):
    pickle_weights(torch, folder, change)
    with pytest.raises(InputError, match=message):
        load_backbone(folder)


def test_damaged_pickle(torch, folder):
    pickle_weights(torch, folder)
    path = folder / "pytorch_model.bin"
    for damaged in (
        path.read_bytes()[:-200],
        b"",
        b"PK\x03\x04",
        b"nothing of the sort",
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"pytorch_model\.bin"):
            load_backbone(folder)


def test_without_torch_a_pickle_is_sent_to_be_converted(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="torch is not installed") as caught:
        load_backbone(folder)
    assert f"M.from_pretrained(r'{folder}')" in str(caught.value)


def test_the_conversion_that_is_named_works(torch, folder, small, monkeypatch):
    pickle_weights(torch, folder)
    with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
        patch.setitem(sys.modules, "torch", None)
        load_backbone(folder)
    (code,) = re.findall(r'python -c "(.*)"', str(caught.value))
    exec(code, {})
    (folder / "pytorch_model.bin").unlink()
    assert_same(load_backbone(folder), small)


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        ({}, "float32"),
        ({}, "bfloat16"),
        ({"tie_word_embeddings": False, "n_inner": 5}, "float32"),
        ({"scale_attn_weights": False, "n_head": 3}, "float32"),
        ({"activation_function": "prelu"}, "float32"),
        # transformers keeps xIELU's parameters in bf16, whatever the file has.
        ({"activation_function": "xielu"}, "bfloat16"),
    ],
)
def test_transformers_loads_what_is_saved(variant, dtype, torch, tmp_path):
    from transformers import GPT2LMHeadModel

    backbone = random_backbone(dtype, **variant)
    save_backbone(tmp_path, backbone.parted(1, 2))
    model, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, dtype)
    for field, value in backbone.config.fields().items():
        assert getattr(model.config, field) == value, field
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert_same(load_backbone(again, dtype=dtype), backbone)
    if dtype == "float32":
        with torch.no_grad():
            expected = model(torch.from_numpy(TOKENS).long()).logits.numpy()
        result = backbone(jnp.asarray(TOKENS))
        assert abs(result - expected).max() <= 2.0**-17 * abs(expected).max()


def test_what_transformers_saves_in_shards_is_read(torch, tmp_path):
    from transformers import GPT2LMHeadModel

    save_backbone(tmp_path, random_backbone())
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same(load_backbone(tmp_path), random_backbone())


def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"x\.safetensors could not be written"):
            save_tensors({"x": np.zeros(1000)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
