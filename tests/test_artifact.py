"""A stored prefix: exact, in PEFT's layout (law 10), refused where it cannot fit."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import make
from folders import unseal
from safetensors import safe_open
from safetensors.numpy import save_file

from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_form import Form
from prefix_jax.model.prefix_kinds import MLPPrefix
from prefix_jax.model.weights import fingerprint, save_backbone
from prefix_jax.seal import SUMS
from prefix_jax.storage.artifact import load_prefix, save_prefix
from prefix_jax.storage.metadata import read_metadata
from prefix_jax.storage.peft_layout import to_tensor

LENGTH = 4
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OWN, OWN_TENSORS = "prefix_jax.json", "prefix_jax.safetensors"


@pytest.fixture(scope="module")
def prefix(backbone) -> KV:
    config = backbone.config
    shape = (config.n_layer, 1, LENGTH, config.kv_heads, config.head_width)
    keys, values = np.random.default_rng(0).normal(size=(2, *shape))
    return KV(jnp.float32(keys), jnp.float32(values))


@pytest.fixture
def folder(tmp_path, backbone, prefix):
    """A prefix on disk."""
    path = tmp_path / "best"
    save_prefix(path, prefix, backbone=backbone)
    unseal(path)
    return path


def same(a: KV, b: KV) -> bool:
    return a.position_mode == b.position_mode and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in ((a.keys, b.keys), (a.values, b.values))
    )


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def changed(backbone, **fields) -> GPT2:
    """A backbone whose configuration differs in these fields, and of no weight."""
    config = dataclasses.replace(backbone.config, **fields)
    shapes = jax.eval_shape(lambda key: GPT2(config, key=key), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def test_what_is_stored_is_loaded_bit_for_bit(folder, backbone, prefix):
    assert same(load_prefix(str(folder), backbone), prefix)


def test_a_reparametrised_prefix_is_stored_folded(tmp_path, backbone):
    form = Form(dropout=0.5, position_mode="unshifted")
    shapes = jax.eval_shape(
        lambda key: MLPPrefix(backbone.config, 3, 8, form, key=key),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)
    prefix = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), shapes)
    save_prefix(tmp_path / "p", prefix, backbone=backbone)
    assert same(load_prefix(tmp_path / "p", backbone), prefix())


def test_the_column_order_is_that_of_peft(backbone, prefix):
    tensor = to_tensor(prefix, backbone.config)
    keys, values = np.asarray(prefix.keys), np.asarray(prefix.values)
    layers, _, length, heads, width = keys.shape
    assert tensor.shape == (length, layers * 2 * heads * width)
    for layer, position, head, i in np.ndindex(layers, length, heads, width):
        column = (2 * layer * heads + head) * width + i
        assert tensor[position, column] == keys[layer, 0, position, head, i]
        column = ((2 * layer + 1) * heads + head) * width + i
        assert tensor[position, column] == values[layer, 0, position, head, i]


def test_the_record_says_where_the_prefix_comes_from(tmp_path, backbone, prefix):
    save_prefix(
        tmp_path / "p",
        prefix,
        backbone=backbone,
        scores={"validation_loss": 1.5, "bleu": float("nan")},
        recipe={"prefix": {"length": LENGTH}, "buckets": (8, 16)},
        task="table_to_text",
        e2e=True,
        base_model_name="gpt2-medium",
    )
    metadata = read_metadata(tmp_path / "p")
    assert metadata.length == LENGTH
    assert metadata.position_mode == "shifted"
    assert metadata.backbone_name == "gpt2-medium"
    assert metadata.backbone_fingerprint == fingerprint(backbone)
    assert metadata.backbone_dtype == "float32"
    assert metadata.task == "table_to_text" and metadata.e2e
    assert metadata.scores == {"validation_loss": 1.5, "bleu": None}
    assert metadata.recipe == {"prefix": {"length": LENGTH}, "buckets": [8, 16]}
    with safe_open(tmp_path / "p" / TENSORS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_peft_is_offered_nothing_that_it_would_misread(tmp_path, backbone, prefix):
    folder = tmp_path / "p"
    save_prefix(folder, prefix, backbone=backbone)
    unshifted = dataclasses.replace(prefix, position_mode="unshifted")
    save_prefix(folder, unshifted, backbone=backbone)  # in place of the other
    assert sorted(path.name for path in folder.iterdir()) == [SUMS, OWN, OWN_TENSORS]
    assert "not readable" in json.loads((folder / OWN).read_text())["peft"]
    save_prefix(folder, prefix, backbone=backbone)
    assert sorted(path.name for path in folder.iterdir()) == [
        SUMS,
        CONFIG,
        TENSORS,
        OWN,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]  # nothing left behind


def test_a_save_that_fails_leaves_the_old_prefix(folder, backbone, prefix):
    broken = dataclasses.replace(
        prefix, keys=prefix.keys.at[0, 0, 0, 0, 0].set(jnp.nan)
    )
    with pytest.raises(InputError, match=r"1 of .* NaN or infinite"):
        save_prefix(folder, broken, backbone=backbone)
    with pytest.raises(TypeError):
        save_prefix(folder, prefix, backbone=backbone, recipe={"a": object()})
    assert same(load_prefix(folder, backbone), prefix)


def test_a_folder_with_other_things_is_left_alone(tmp_path, backbone, prefix):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        save_prefix(tmp_path, prefix, backbone=backbone)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(InputError, match="is a file"):
        save_prefix(tmp_path / "thesis.tex", prefix, backbone=backbone)


def test_what_does_not_fit_is_not_stored(tmp_path, backbone, prefix):
    bank = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), prefix)
    with pytest.raises(InputError, match="bank of 2"):
        save_prefix(tmp_path / "p", bank, backbone=backbone)
    with pytest.raises(InputError, match="3 layers of 4 heads"):
        save_prefix(tmp_path / "p", prefix, backbone=changed(backbone, n_head=2))


def test_another_backbone_is_refused(folder, backbone):
    for fields, message in (
        ({"n_layer": 2}, "configuration differs.*n_layer 3 there, 2 here"),
        ({"n_head": 2}, "num_attention_heads 4 there, 2 here"),
        ({"n_embd": 16}, "token_dim 32 there, 16 here"),
        ({"scale_attn_weights": False}, "scale_attn_weights True there, False here"),
    ):
        with pytest.raises(InputError, match=message):
            load_prefix(folder, changed(backbone, **fields))
    llama = make("llama")
    with pytest.raises(
        InputError, match="differs: model_type 'gpt2' there, 'llama' he"
    ):
        load_prefix(folder, llama)
    other = changed(backbone)
    with pytest.raises(InputError, match=r"its weights differ.*--backbone\.name NAME"):
        load_prefix(folder, other)
    (folder / OWN).unlink()  # then nothing but the shape can be checked
    load_prefix(folder, other)
    with pytest.raises(InputError, match="num_layers 3 there, 2 here"):
        load_prefix(folder, changed(backbone, n_layer=2))


def test_a_prefix_that_fills_all_positions_is_refused(folder, backbone):
    (folder / OWN).unlink()
    with pytest.raises(InputError, match="leaves no room"):
        load_prefix(folder, changed(backbone, n_positions=LENGTH))


def write_tensor(folder, tensor, name="prompt_embeddings"):
    save_file({name: tensor}, folder / TENSORS, metadata={"format": "pt"})


def test_what_is_there_instead_of_a_prefix_is_said(tmp_path, small):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("")
    save_backbone(tmp_path / "tuned", small)
    for name, message in (
        ("othr", 'othr does not exist; did you mean "other"'),
        ("absent", "absent does not exist; give the folder of a prefix, or of the r"),
        ("file", "file is a file; give the folder"),
        ("empty", "empty is empty; give the folder"),
        ("other", r"other holds no prefix .* but notes\.md; give the folder"),
        ("tuned", r"holds no prefix .* whole model.* use it as a backbone"),
    ):
        with pytest.raises(InputError, match=message):
            read_metadata(tmp_path / name)


DAMAGE = {
    "gone": (lambda f: shutil.rmtree(f), "does not exist; give the folder"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "is missing"),
    "cut": (
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-9]),
        "not a whole safetensors file",
    ),
    "empty": (lambda f: (f / TENSORS).write_bytes(b""), "not a whole safetensors file"),
    "name": (
        lambda f: write_tensor(f, np.zeros((4, 192), np.float32), "base.score"),
        "holds the tensors base.score",
    ),
    "shape": (
        lambda f: write_tensor(f, np.zeros((4, 191), np.float32)),
        r"\[4, 191\].*needs \[positions, 192\]",
    ),
    "rank": (lambda f: write_tensor(f, np.zeros(192, np.float32)), "has shape"),
    "no rows": (lambda f: write_tensor(f, np.zeros((0, 192), np.float32)), "has shape"),
    "length": (
        lambda f: write_tensor(f, np.zeros((5, 192), np.float32)),
        "holds 5 positions.*says 4",
    ),
    "type": (
        lambda f: write_tensor(f, np.zeros((4, 192), np.int32)),
        "is I32; expected F64, F32",
    ),
    "nan": (
        lambda f: write_tensor(f, np.full((4, 192), np.nan, np.float32)),
        "768 of 768 numbers",
    ),
    "json": (lambda f: (f / OWN).write_text("{"), ":1: not JSON"),
    "utf-8": (lambda f: (f / OWN).write_bytes(b'{"a": "\xff"}'), "not UTF-8"),
    "list": (
        lambda f: (f / CONFIG).write_text("[1]"),
        "expected an object",
    ),
    "kind": (lambda f: edit(f / OWN, kind="adapter"), "kind 'adapter'"),
    "format": (lambda f: edit(f / OWN, format=2), "format 2"),
    "mode": (lambda f: edit(f / OWN, position_mode="left"), "position_mode is 'left'"),
    "field": (
        lambda f: edit(f / OWN, recipe=3),
        "recipe .* is 3, a whole number; expected an object",
    ),
    "peft": (lambda f: edit(f / CONFIG, peft_type="LORA"), "peft_type is 'LORA'"),
    "other mode": (lambda f: edit(f / OWN, position_mode="unshifted"), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(folder, backbone, damage):
    do, message = DAMAGE[damage]
    do(folder)
    with pytest.raises(InputError, match=message):
        load_prefix(folder, backbone)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_tensors_are_read(folder, backbone, prefix, dtype):
    narrow = jax.tree.map(lambda x: x.astype(dtype), prefix)
    write_tensor(folder, to_tensor(narrow, backbone.config).astype(dtype))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    assert same(load_prefix(folder, backbone), wide)
