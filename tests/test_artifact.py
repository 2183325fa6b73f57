"""A stored prefix: exact, in PEFT's layout (law 10), refused where it cannot fit."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.generate import generate
from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix import MLPPrefix
from prefix_jax.model.weights import fingerprint, save_backbone
from prefix_jax.storage.artifact import load_prefix, read_metadata, save_prefix
from prefix_jax.storage.peft_layout import to_tensor

LENGTH = 4
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OWN, OWN_TENSORS = "prefix_jax.json", "prefix_jax.safetensors"


@pytest.fixture(scope="module")
def prefix(backbone) -> KV:
    config = backbone.config
    shape = (config.n_layer, 1, LENGTH, config.n_head, config.head_width)
    keys, values = np.random.default_rng(0).normal(size=(2, *shape))
    return KV(jnp.float32(keys), jnp.float32(values))


@pytest.fixture
def folder(tmp_path, backbone, prefix):
    """A prefix on disk."""
    path = tmp_path / "best"
    save_prefix(path, prefix, backbone=backbone)
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
    options = {"dropout": 0.5, "position_mode": "unshifted"}
    shapes = jax.eval_shape(
        lambda key: MLPPrefix(backbone.config, 3, 8, key=key, **options),
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
        base_model_name="gpt2-medium",
    )
    metadata = read_metadata(tmp_path / "p")
    assert metadata.length == LENGTH
    assert metadata.position_mode == "shifted"
    assert metadata.backbone_name == "gpt2-medium"
    assert metadata.backbone_fingerprint == fingerprint(backbone)
    assert metadata.scores == {"validation_loss": 1.5, "bleu": None}
    assert metadata.recipe == {"prefix": {"length": LENGTH}, "buckets": [8, 16]}
    with safe_open(tmp_path / "p" / TENSORS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_peft_is_offered_nothing_that_it_would_misread(tmp_path, backbone, prefix):
    folder = tmp_path / "p"
    save_prefix(folder, prefix, backbone=backbone)
    unshifted = dataclasses.replace(prefix, position_mode="unshifted")
    save_prefix(folder, unshifted, backbone=backbone)  # in place of the other
    assert sorted(path.name for path in folder.iterdir()) == [OWN, OWN_TENSORS]
    assert "not readable" in json.loads((folder / OWN).read_text())["peft"]
    save_prefix(folder, prefix, backbone=backbone)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, TENSORS, OWN]
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
    other = changed(backbone)
    with pytest.raises(InputError, match="its weights differ"):
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


DAMAGE = {
    "gone": (lambda f: shutil.rmtree(f), "holds no prefix"),
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
        "expected floating point",
    ),
    "nan": (
        lambda f: write_tensor(f, np.full((4, 192), np.nan, np.float32)),
        "768 of 768 numbers",
    ),
    "json": (lambda f: (f / OWN).write_text("{"), "not valid JSON"),
    "utf-8": (lambda f: (f / OWN).write_bytes(b'{"a": "\xff"}'), "not valid JSON"),
    "list": (lambda f: (f / CONFIG).write_text("[1]"), "not a JSON object"),
    "kind": (lambda f: edit(f / OWN, kind="infix"), "kind 'infix'"),
    "format": (lambda f: edit(f / OWN, format=2), "format 2"),
    "mode": (lambda f: edit(f / OWN, position_mode="left"), "position_mode is 'left'"),
    "field": (lambda f: edit(f / OWN, recipe=3), "recipe .* is 3; expected dict"),
    "peft": (lambda f: edit(f / CONFIG, peft_type="LORA"), "peft_type is 'LORA'"),
    "other mode": (lambda f: edit(f / OWN, position_mode="unshifted"), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(folder, backbone, damage):
    do, message = DAMAGE[damage]
    do(folder)
    with pytest.raises(InputError, match=message):
        load_prefix(folder, backbone)


def test_half_precision_tensors_are_read(folder, backbone, prefix):
    for dtype in (jnp.bfloat16, jnp.float16):
        narrow = jax.tree.map(lambda x: x.astype(dtype), prefix)  # noqa: B023
        write_tensor(folder, to_tensor(narrow, backbone.config).astype(dtype))
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
        assert same(load_prefix(folder, backbone), wide)


# What follows compares with PEFT itself. The bound is that of test_gpt2_parity: the
# same PEFT model in f64 is the truth, PyTorch's own f32 error against it the measure,
# and ours may be at most four times that plus four units in the last place of the
# largest logit.


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("torch").set_num_threads(1)
    return pytest.importorskip("peft")


@pytest.fixture
def torch_model(tmp_path, backbone, peft):
    from transformers import GPT2LMHeadModel

    save_backbone(tmp_path / "gpt2", backbone)
    return lambda: GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2").eval()


def assert_equal_logits(backbone, kv, peer, exact):
    import torch

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, backbone.config.vocab_size, (2, 9))
    mask = np.ones((2, 9), bool)
    mask[1, -3:] = False
    ours = jax.jit(lambda model, *x: model(*x))(backbone, tokens, kv, mask)

    @torch.no_grad()
    def run(model):
        ids, seen = torch.tensor(tokens), torch.tensor(mask).long()
        return model(input_ids=ids, attention_mask=seen).logits.double().numpy()

    ours, theirs, truth = np.asarray(ours, float), run(peer), run(exact)
    assert theirs.shape == ours.shape  # PEFT gives logits of the text only
    ours, theirs, truth = ours[mask], theirs[mask], truth[mask]
    size, own = abs(truth).max(), abs(theirs - truth).max()
    print(f"ours {abs(ours - truth).max():.2e}, PEFT's {own:.2e}, largest {size:.1f}")
    assert abs(ours - truth).max() <= 4 * own + 4 * 2.0**-23 * size
    without = np.asarray(backbone(jnp.asarray(tokens), None, jnp.asarray(mask)))[mask]
    assert abs(without - truth).max() > 0.1 * size, "the prefix changes nothing"


def test_peft_computes_the_same_with_our_prefix(
    folder, backbone, prefix, peft, torch_model
):
    peer = peft.PeftModel.from_pretrained(torch_model(), folder)
    exact = peft.PeftModel.from_pretrained(torch_model().double(), folder)
    assert_equal_logits(backbone, prefix, peer, exact.double())


def test_peft_writes_the_same_text_with_our_prefix(
    tmp_path, backbone, prefix, tokenizer, peft, torch_model
):
    import torch

    folder = tmp_path / "p"
    save_prefix(folder, prefix, backbone=backbone, base_model_name="gpt2-medium")
    model = peft.PeftModel.from_pretrained(torch_model(), folder)
    prompts = ["The mill by", " name : Blue Spice", "old"]
    ours = generate(
        backbone,
        tokenizer,
        prompts,
        prefix=load_prefix(folder, backbone),
        decode=DecodeConfig(max_new_tokens=12),
    )
    assert all(ours)
    for prompt, text in zip(prompts, ours, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                pad_token_id=0,
            )
        new = out[0, ids.shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == text


@pytest.mark.parametrize("projection", [False, True])
def test_we_compute_the_same_with_a_prefix_of_peft(
    tmp_path, backbone, peft, torch_model, projection
):
    import torch

    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=LENGTH,
        prefix_projection=projection,
        encoder_hidden_size=16,
    )
    peer = peft.get_peft_model(torch_model(), config).eval()
    peer.save_pretrained(tmp_path / "theirs")
    exact = peft.PeftModel.from_pretrained(torch_model().double(), tmp_path / "theirs")
    kv = load_prefix(tmp_path / "theirs", backbone)
    assert kv.position_mode == "shifted" and kv.length == LENGTH
    assert_equal_logits(backbone, kv, peer, exact.double())
