"""Backbones on disk: round trips, every accepted layout, every refusal."""

import json
import os
import pickle
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.numpy import load_file, save_file

from prefix_jax.errors import InputError
from prefix_jax.model import loading
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.model.weights import fingerprint, save_backbone

SHAPE = {"vocab_size": 11, "n_positions": 8, "n_embd": 6, "n_layer": 3, "n_head": 2}
TOKENS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)


def random_backbone(dtype="float32", **variant) -> GPT2:
    """Every leaf random, so that no two of them can be confused."""
    config = GPT2Config(**SHAPE | variant)
    shapes = jax.eval_shape(
        lambda key: GPT2(config, key=key, dtype=dtype), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.dtype(dtype)), shapes
    )


def parted(backbone, first):
    copy = jax.tree.map(lambda x: x, backbone)
    (whole,) = backbone.blocks
    copy.blocks = nnx.List(
        [
            jax.tree.map(lambda x: x[:first], whole),
            jax.tree.map(lambda x: x[first:], whole),
        ]
    )
    return copy


def assert_same(one, other):
    """The same tree, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def small():
    return random_backbone()


@pytest.fixture
def folder(tmp_path, small):
    """A folder that loads, for the tests to spoil."""
    folder = tmp_path / "model"
    save_backbone(folder, small)
    return folder


def rewrite(folder, change):
    """Let `change` edit the folder's tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder, count=3):
    """Cut model.safetensors into shards with an index; returns the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::count]}, folder / file)
        files |= dict.fromkeys(names[i::count], file)
    return write_index(folder, files)


def write_index(folder, files):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


# What can be read.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"tie_word_embeddings": False, "n_inner": 5, "layer_norm_epsilon": 0.1},
        {"activation_function": "prelu"},
        {"activation_function": "xielu"},
    ],
)
def test_what_is_saved_loads_bit_for_bit(variant, dtype, tmp_path):
    backbone = random_backbone(dtype, **variant)
    save_backbone(tmp_path, backbone)
    assert_same(load_backbone(tmp_path, dtype=dtype), backbone)


def test_two_stacks_are_saved_like_one(small, folder, tmp_path):
    save_backbone(tmp_path / "parted", parted(small, 1))
    assert_same(load_backbone(tmp_path / "parted"), small)
    names = [
        sorted(load_file(x / "model.safetensors"))
        for x in (folder, tmp_path / "parted")
    ]
    assert names[0] == names[1]


def test_weights_are_rounded_once_to_the_dtype_asked_for(folder, small):
    loaded = load_backbone(str(folder), dtype="bfloat16", remat=True)
    assert loaded.dtype == jnp.bfloat16
    assert loaded.remat
    for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(small), strict=True):
        np.testing.assert_array_equal(x, y.astype(jnp.bfloat16))


@pytest.mark.parametrize("given", [np.float64, np.float16])
def test_other_float_types_are_read(given, folder, small):
    rewrite(folder, lambda x: x.update({k: v.astype(given) for k, v in x.items()}))
    loaded = load_backbone(folder)
    expected = np.asarray(small.token_embedding[...]).astype(given).astype(np.float32)
    np.testing.assert_array_equal(loaded.token_embedding[...], expected)


def test_shards(folder, small):
    shard(folder)
    assert_same(load_backbone(folder), small)


def test_names_without_transformer(folder, small):
    def bare(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    rewrite(folder, bare)
    assert_same(load_backbone(folder), small)


def test_old_mask_buffers_are_passed_over(folder, small):
    def add(tensors):
        for i in range(SHAPE["n_layer"]):
            mask = np.tril(np.ones((1, 1, 8, 8), np.uint8))
            tensors[f"transformer.h.{i}.attn.bias"] = mask
            tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)

    rewrite(folder, add)
    assert_same(load_backbone(folder), small)


@pytest.mark.parametrize("keep_embedding", [True, False])
def test_tied_head_may_be_stored(keep_embedding, folder, small):
    """As old files have it, or in place of the embedding (safetensors' save_model)."""

    def add(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
        if not keep_embedding:
            del tensors["transformer.wte.weight"]

    rewrite(folder, add)
    assert_same(load_backbone(folder), small)


def test_code_that_a_folder_names_is_not_run(folder, small, tokenizer):
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    configure(folder, auto_map=auto_map)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    values |= {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    path.write_text(json.dumps(values | {"tokenizer_class": "EvilTokenizer"}))
    assert_same(load_backbone(folder), small)
    assert load_tokenizer(folder).encode("The mill") == tokenizer.encode("The mill")
    assert "evil" not in sys.modules


# What is refused, and how it is said.


def renamed(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


WTE = "transformer.wte.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop(WTE), r"wte.weight: missing, expected \[11, 6\]"),
        (
            lambda x: x.update({WTE: np.ones((12, 6), np.float32)}),
            r"wte.weight: found \[12, 6\], expected \[11, 6\]",
        ),
        (
            lambda x: x.update({WTE: np.ones((11, 6), np.int64)}),
            "wte.weight: found I64, expected F64, F32, F16, BF16",
        ),
        (
            lambda x: x.update({"score.weight": np.ones((2, 6), np.float32)}),
            r"score.weight: unexpected, found \[2, 6\]",
        ),
        (
            renamed("transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.W"),
            r"h.1.attn.c_attn.weight: missing, expected \[6, 18\]\n"
            r".*h.1.attn.W: unexpected, found \[6, 18\]",
        ),
        (
            lambda x: x.update({"wte.weight": x[WTE]}),
            "wte.weight: there twice",
        ),
        (
            lambda x: x.update({"lm_head.weight": x[WTE] + 1}),
            'lm_head.weight: differs from wte.weight.*"tie_word_embeddings": false',
        ),
        (
            lambda x: [x.pop(name) for name in list(x) if ".h.2." in name],
            "h.2.*(missing.*\n.*){8}and 4 more$",
        ),
    ],
)
def test_unfit_tensors_are_named(change, message, folder):
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        load_backbone(folder)
    assert str(folder) in str(caught.value)


def test_an_untied_head_must_be_there(folder):
    configure(folder, tie_word_embeddings=False)
    with pytest.raises(
        InputError, match=r"lm_head.weight: missing, expected \[11, 6\]"
    ):
        load_backbone(folder)


def test_damaged_files(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:100], b"", b"not tensors at all"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a whole safetensors file"):
            load_backbone(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"no weights in .*; found config.json"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{\n"n_embd": 6,\n}', r"config.json:3: not JSON"),
        (b"[1]", "config.json holds list; expected an object"),
        (b'"\xff"', "config.json: not UTF-8"),
        (b'{"model_type": "bert"}', "model_type is 'bert'"),
    ],
)
def test_damaged_configuration(text, message, folder):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=message):
        load_backbone(folder)


def test_missing_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_backbone(folder)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "..", "a/b", "a\\b", "", 3]
)
def test_an_index_stays_in_its_folder(file, folder):
    index = shard(folder)
    files = json.loads(index.read_text())["weight_map"]
    write_index(folder, files | {WTE: file})
    with pytest.raises(InputError, match=f"{WTE} is in .* beside the index"):
        load_backbone(folder)


def test_an_index_that_does_not_fit(folder):
    index = shard(folder)
    files = json.loads(index.read_text())["weight_map"]
    write_index(folder, files | {"extra": files[WTE]})
    with pytest.raises(InputError, match=f"promises extra in {files[WTE]}"):
        load_backbone(folder)
    write_index(folder, files)
    (folder / files[WTE]).unlink()
    with pytest.raises(InputError, match=f"3 files, of which 1 .*: {files[WTE]}"):
        load_backbone(folder)
    index.write_text("{}")
    with pytest.raises(InputError, match="no weight_map"):
        load_backbone(folder)


def test_a_file_for_a_folder(folder, small):
    with pytest.raises(InputError, match="is a file; give a folder"):
        save_backbone(folder / "config.json", small)
    with pytest.raises(InputError, match="is a file; give the folder"):
        load_backbone(folder / "config.json")


# Names.


def test_missing_folders_and_near_misses(folder, monkeypatch):
    monkeypatch.setattr(loading, "snapshot_download", None)  # the hub is not asked
    for name, message in {
        f"{folder.parent}/modle": f"folder .*/modle does not exist; .* {folder}?",
        "./nowhere": "folder ./nowhere does not exist$",
        "~/no/such/folder": "does not exist",
        "tinny": "no backbone tinny; did you mean tiny?",
        "gpt2-meduim": "did you mean gpt2-medium",
    }.items():
        with pytest.raises(InputError, match=message):
            load_backbone(name)
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InputError, match=r"did you mean model\?"):
        load_tokenizer("modell")
    assert load_backbone("model").config.n_embd == SHAPE["n_embd"]


def test_hub_names(folder, small, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert_same(load_backbone("openai-community/gpt2"), small)
    ((name, patterns),) = asked
    assert name == "openai-community/gpt2"
    assert {"config.json", "model.safetensors"} <= set(patterns)
    assert not any("bin" in pattern or pattern.startswith("*") for pattern in patterns)

    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load_backbone("gpt2")
    assert any("pytorch_model.bin" in pattern for pattern in asked[-1][1])


def test_hub_out_of_reach(monkeypatch):
    def fail(error):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(loading, "snapshot_download", download)

    fail(LocalEntryNotFoundError("Name or service not known\nand more"))
    with pytest.raises(InputError) as caught:
        load_backbone("gpt2-medium")
    assert "could not fetch gpt2-medium" in str(caught.value)
    assert "(Name or service not known)" in str(caught.value)
    assert "hf download gpt2-medium --local-dir FOLDER" in str(caught.value)

    class Response:
        headers, request = {}, None

    fail(RepositoryNotFoundError("404", response=Response()))
    with pytest.raises(InputError, match="no repository someone/gpt2"):
        load_tokenizer("someone/gpt2")


# Tokenizers.


def test_tokenizer_of_a_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "The mill: é 123  \n name"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.eos_token_id == loaded.bos_token_id == tokenizer.eos_token_id


def test_tokenizer_without_a_configuration(tmp_path, tokenizer):
    """GPT-2's files on the hub name no special token; its end token is then meant."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_token_id == loaded.bos_token_id == tokenizer.eos_token_id

    text = (tmp_path / "tokenizer.json").read_text().replace("<|endoftext|>", "<end>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r'no bos_token.*"bos_token" in its'):
        load_tokenizer(tmp_path)


def test_gpt2s_older_tokenizer_files(tmp_path, tokenizer):
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    text = " The old mill by Blue Spice"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.eos_token == loaded.bos_token == "<|endoftext|>"
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"no tokenizer in .* expected tokenizer.json"):
        load_tokenizer(tmp_path)


# Fingerprints.


def test_fingerprint_names_the_function(small, folder, tmp_path):
    mark = fingerprint(small)
    assert re.fullmatch("[0-9a-f]{16}", mark)
    assert fingerprint(load_backbone(folder)) == mark
    assert fingerprint(load_backbone(folder, dtype="bfloat16", remat=True)) == mark
    assert fingerprint(parted(small, 2)) == mark
    others = [
        random_backbone(activation_function="relu"),
        random_backbone(n_head=3),
        random_backbone(scale_attn_weights=False),
        random_backbone(layer_norm_epsilon=0.1),
    ]
    for leaf in range(len(jax.tree.leaves(small))):
        leaves, treedef = jax.tree.flatten(small)
        leaves[leaf] = leaves[leaf].at[(0,) * leaves[leaf].ndim].add(1.0)
        others.append(treedef.unflatten(leaves))
    marks = {fingerprint(other) for other in others}
    assert len(marks | {mark}) == len(others) + 1


def test_fingerprint_stays_the_same():
    """Stored artifacts carry it: a change here disowns every one of them."""
    leaf = iter(range(100))
    backbone = jax.tree.map(
        lambda x: jnp.full(x.shape, next(leaf), x.dtype), random_backbone()
    )
    assert fingerprint(backbone) == "b33f7f6cf936bc32"


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
    save_backbone(tmp_path, parted(backbone, 1))
    model, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, dtype)
    for field in GPT2Config.__dataclass_fields__:
        assert getattr(model.config, field) == getattr(backbone.config, field), field
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
