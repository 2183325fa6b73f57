"""Every kind of prefix on disk: whole, in PEFT's layout or with the reason why not."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from folders import as_by_peft, unseal
from kinds import KINDS, LENGTH, make, opened
from safetensors.numpy import load_file

from prefix_jax.cli import main
from prefix_jax.errors import InputError
from prefix_jax.model.compose import bank
from prefix_jax.runs.inspect import inspect_prefix
from prefix_jax.seal import SUMS
from prefix_jax.storage.artifact import load_embeddings, load_prefix, save_prefix
from prefix_jax.storage.exporting import export_prefix
from prefix_jax.storage.importing import find_prefix
from prefix_jax.storage.metadata import read_metadata
from prefix_jax.storage.shortening import shorten_prefix

TENSORS, CONFIG, OWN = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "prefix_jax.json",
)
OWN_TENSORS = "prefix_jax.safetensors"
TEXT = np.array([[7, 8, 9, 10], [3, 1, 4, 1]])
REASONS = {
    "infix": "it is an infix",
    "layers": "its layers have different positions",
    "mlp lengths": "its layers have different positions",
    "gate": "it is gated",
    "all": "it is an infix.*it is gated.*different positions.*unshifted positions",
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def prefix(backbone, kind):
    return opened(make(backbone, **KINDS[kind]))


@pytest.fixture
def folder(tmp_path, backbone, prefix, model_folder):
    save_prefix(
        tmp_path / "p",
        prefix,
        backbone=backbone,
        scores={"validation_loss": 1.0},
        base_model_name=str(model_folder),
    )
    return tmp_path / "p"


def assert_same(a, b):
    np.testing.assert_array_equal(a.keys, b.keys)
    np.testing.assert_array_equal(a.values, b.values)
    for x in (a, b):
        assert x.lengths is None or x.lengths.dtype == jnp.int32
    assert np.array_equal(a.limit(a.length).lengths, b.limit(b.length).lengths)
    assert (a.position_mode, a.placement, a.own_softmax) == (
        b.position_mode,
        b.placement,
        b.own_softmax,
    )


def test_what_is_stored_is_loaded(folder, backbone, prefix):
    assert_same(load_prefix(folder, backbone), prefix.fold(backbone))


def test_peft_is_offered_what_it_can_represent(folder, kind, tmp_path):
    names = {path.name for path in folder.iterdir()}
    if kind not in REASONS:
        assert names == {TENSORS, CONFIG, OWN, SUMS}
        export_prefix(folder, tmp_path / "out", base_model="me/mine")
        assert json.loads((folder / OWN).read_text())["peft"] == "readable"
        return
    assert names == {OWN_TENSORS, OWN, SUMS}
    assert "not readable" in json.loads((folder / OWN).read_text())["peft"]
    with pytest.raises(InputError, match=f"PEFT cannot represent.*{REASONS[kind]}"):
        export_prefix(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", [1, 3])
def test_a_shorter_one_is_the_first_positions(
    folder, tmp_path, backbone, kind, prefix, length
):
    out = tmp_path / "short"
    shorten_prefix(folder, out, length)
    kv = prefix.fold(backbone).shorten(length)
    found = load_prefix(out, backbone)
    if kind == "embedding":  # fewer are read: the same vectors, other rounding
        np.testing.assert_array_equal(
            load_embeddings(out, backbone), prefix.embeddings()[:length]
        )
    tolerance = 2e-5 if kind == "embedding" else 0
    np.testing.assert_allclose(found.keys, kv.keys, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.values, kv.values, rtol=0, atol=tolerance)
    assert np.array_equal(found.limit(length).lengths, kv.limit(length).lengths)
    assert {p.name for p in out.iterdir()} == {p.name for p in folder.iterdir()}
    metadata = read_metadata(out)
    assert metadata.scores is None
    assert metadata.recipe == {"shortened": {"from": LENGTH, "to": length}}
    with pytest.raises(InputError, match="4 positions and cannot be cut to 5"):
        shorten_prefix(folder, tmp_path / "long", 5)


def test_inspect_describes_it(folder, kind, backbone):
    found = inspect_prefix(folder, ["The mill"])
    lengths = KINDS[kind].get("lengths") or [
        LENGTH * (layer in KINDS[kind].get("layers", range(3))) for layer in range(3)
    ]
    assert [layer.length for layer in found.layers] == list(lengths)
    one = 32 if kind == "embedding" else 2 * 32
    assert found.numbers == (LENGTH if kind == "embedding" else sum(lengths)) * one
    for layer in found.layers:
        assert (layer.key_norm > 0) == (layer.length > 0)
        if "gate" in KINDS[kind]:
            assert layer.mass is None
        else:
            assert (max(layer.mass) > 0) == (layer.length > 0)


def test_embeddings_are_those_of_prompt_tuning(tmp_path, backbone, model_folder):
    """In PEFT the same logits; imported from PEFT, the same vectors again."""
    prefix = make(backbone, kind="embedding")
    ours = tmp_path / "ours"
    save_prefix(ours, prefix, backbone=backbone)
    stored = load_file(ours / TENSORS)["prompt_embeddings"]
    np.testing.assert_array_equal(stored, prefix.embeddings())
    np.testing.assert_array_equal(load_embeddings(ours, backbone), stored)
    record = (ours / OWN).read_text()
    (ours / OWN).unlink()  # now it might be PEFT's own
    found = find_prefix(ours, backbone)
    (ours / OWN).write_text(record)
    np.testing.assert_array_equal(found.prefix.embeddings(), stored)
    assert (found.length, found.numbers) == (LENGTH, LENGTH * 32)

    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel.from_pretrained(model_folder).eval()
    peer = peft.PeftModel.from_pretrained(model, ours).eval()
    with torch.no_grad():
        expected = peer(input_ids=torch.tensor(TEXT)).logits.numpy()[:, LENGTH:]
    logits = backbone(jnp.asarray(TEXT), load_prefix(ours, backbone))
    np.testing.assert_allclose(logits, expected, atol=5e-5)
    peer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "README.md").unlink()
    again = load_prefix(tmp_path / "theirs", backbone)  # without an import, too
    np.testing.assert_array_equal(again.keys, load_prefix(ours, backbone).keys)


def test_embeddings_without_their_backbone_are_described(tmp_path, backbone, capsys):
    save_prefix(tmp_path / "p", make(backbone, kind="embedding"), backbone=backbone)
    found = inspect_prefix(tmp_path / "p")
    assert found.layers == () and found.numbers == LENGTH * 32
    with pytest.raises(SystemExit) as exit:
        main(["inspect", str(tmp_path / "p")])
    assert exit.value.code == 0
    assert "embedding" in capsys.readouterr().out


def test_unshifted_embeddings_are_not_for_peft(tmp_path, backbone):
    prefix = make(backbone, kind="embedding", position_mode="unshifted")
    save_prefix(tmp_path / "p", prefix, backbone=backbone)
    assert not (tmp_path / "p" / CONFIG).exists()
    assert_same(load_prefix(tmp_path / "p", backbone), prefix.fold(backbone))


def test_keys_and_values_are_no_embeddings(tmp_path, backbone):
    save_prefix(tmp_path / "p", make(backbone), backbone=backbone)
    with pytest.raises(InputError, match="cannot be turned back"):
        load_embeddings(tmp_path / "p", backbone)


def test_a_prefix_out_of_a_bank_is_stored_without_its_padding(tmp_path, backbone):
    short = make(backbone, length=2)()
    many = bank([make(backbone)(), short])
    save_prefix(tmp_path / "p", many.select(jnp.array([1])), backbone=backbone)
    assert_same(load_prefix(tmp_path / "p", backbone), short)
    assert (tmp_path / "p" / CONFIG).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_lengths": [4, 4]}, "has 2 numbers; the backbone has 3 layers"),
        ({"layer_lengths": [1, 2, 3]}, "the largest of them 4"),
        ({"layer_lengths": [4, -1, 3]}, "expected a number of positions"),
        ({"layer_lengths": 4}, "expected a list"),
        ({"placement": "suffix"}, "placement is 'suffix'; expected one of prefix"),
        ({"own_softmax": 1}, "own_softmax .* is 1, a whole number; expected a boolean"),
    ],
)
def test_a_description_that_cannot_be_is_refused(tmp_path, backbone, changes, message):
    folder = tmp_path / "p"
    save_prefix(folder, make(backbone, **KINDS["layers"]), backbone=backbone)
    record = json.loads((folder / OWN).read_text())
    (folder / OWN).write_text(json.dumps(record | changes))
    unseal(folder)
    with pytest.raises(InputError, match=message):
        load_prefix(folder, backbone)


def test_what_peft_leaves_out_the_backbone_says(tmp_path, backbone, model_folder):
    """The smallest description that PEFT loads has no layers, heads or width."""
    folder = tmp_path / "p"
    save_prefix(folder, make(backbone), backbone=backbone)
    as_by_peft(folder)
    least = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": LENGTH}

    def describe(**more):
        (folder / CONFIG).write_text(json.dumps(least | more))

    describe(base_model_name_or_path=str(model_folder))
    whole = load_prefix(folder, backbone)
    assert inspect_prefix(folder).backbone_found.startswith("of the same shape")
    shorten_prefix(folder, tmp_path / "named", 2)
    assert_same(load_prefix(tmp_path / "named", backbone), whole.shorten(2))

    describe()
    given = str(model_folder)
    assert len(inspect_prefix(folder, backbone=given).layers) == 3
    shorten_prefix(folder, tmp_path / "given", 2, backbone=given)
    assert_same(load_prefix(tmp_path / "given", backbone), whole.shorten(2))

    for more, message in (
        ({}, "does not say num_layers, nor which backbone it is for; give the back"),
        ({"base_model_name_or_path": "/no/one"}, "'/no/one' cannot be read .* give"),
        (
            {"base_model_name_or_path": given, "num_layers": 2},
            "does not say num_attention_heads, and .* another one .num_layers 2 there",
        ),
    ):
        describe(**more)
        for command in (inspect_prefix, lambda f: shorten_prefix(f, tmp_path / "x", 2)):
            with pytest.raises(InputError, match=message):
                command(folder)


def test_shorten_by_the_command_line(tmp_path, backbone, capsys):
    """What PEFT wrote is cut as well; the prefix itself is never overwritten."""
    folder = tmp_path / "p"
    save_prefix(folder, make(backbone), backbone=backbone)
    as_by_peft(folder)

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main(["shorten", str(folder), "--length", "2", *arguments])
        printed = capsys.readouterr()
        return exit.value.code, " ".join((printed.out + printed.err).split())

    code, text = run("--out", str(tmp_path / "two"))
    assert code == 0 and "not trained for that length" in text
    whole, two = load_prefix(folder, backbone), load_prefix(tmp_path / "two", backbone)
    assert_same(two, whole.shorten(2))
    code, text = run("--out", str(folder))
    assert code == 2 and "the prefix itself" in text
