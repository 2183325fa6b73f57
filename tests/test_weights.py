"""Backbones on disk: round trips, every accepted layout, every refusal."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import (
    SHAPE,
    assert_same,
    configure,
    random_backbone,
    rewrite,
    shard,
    write_index,
)
from safetensors.numpy import load_file

from prefix_jax.errors import InputError
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.model.weights import fingerprint, save_backbone

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
    save_backbone(tmp_path / "parted", small.parted(1, 2))
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


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(value, folder):
    def spoil(tensors):
        tensors["transformer.h.1.mlp.c_fc.bias"][:2] = value

    rewrite(folder, spoil)
    message = r"2 of 24 numbers of h\.1\.mlp\.c_fc\.bias in .* are NaN or infinite"
    with pytest.raises(InputError, match=message):
        load_backbone(folder)


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
        (b"[1]", "config.json holds a list; expected an object"),
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


# Fingerprints.


def test_fingerprint_names_the_function(small, folder, tmp_path):
    mark = fingerprint(small)
    assert re.fullmatch("[0-9a-f]{16}", mark)
    assert fingerprint(load_backbone(folder)) == mark
    assert fingerprint(load_backbone(folder, dtype="bfloat16", remat=True)) == mark
    assert fingerprint(small.parted(2, 1)) == mark
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
