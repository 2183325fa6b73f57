"""Prefixes from and for PEFT, by the command line: law 10 through import and export."""

import json
import shutil

import jax
import numpy as np
import pytest
import yaml
from folders import as_by_peft, unseal
from rounding import LOGITS

from prefix_jax.cli import main
from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.weights import fingerprint, save_backbone
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.seal import SUMS
from prefix_jax.storage.artifact import load_prefix, save_prefix
from prefix_jax.storage.exporting import export_prefix
from prefix_jax.storage.metadata import read_metadata

TENSORS, CONFIG, OWN = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "prefix_jax.json",
)


@pytest.fixture(scope="module")
def make(backbone):
    def make(mode="shifted"):
        config = PrefixConfig(init="random", length=4, position_mode=mode)
        return init_prefix(backbone, config, key=jax.random.key(0))()

    return make


@pytest.fixture
def stored(tmp_path, backbone, make, model_folder):
    """A run's folder, with a prefix in its best/."""
    save_prefix(
        tmp_path / "run" / "best",
        make(),
        backbone=backbone,
        scores={"validation_loss": 1.25},
        recipe={"prefix": {"kind": "mlp"}, "backbone": {"name": str(model_folder)}},
        task="table_to_text",
        base_model_name=str(model_folder),
    )
    return tmp_path / "run"


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        text = " ".join((printed.out + printed.err).split())
        assert "Traceback" not in text
        return exit.value.code, text

    return run


def read(path):
    return json.loads(path.read_text())


def test_an_export_is_the_prefix_with_a_card(
    run, stored, tmp_path, backbone, make, model_folder
):
    out = tmp_path / "out"
    code, text = run("export", stored, "--out", out, "--base-model", "me/mine")
    assert code == 0 and "me/mine (by its name alone: not checked)" in text
    for name in (CONFIG, OWN, "README.md"):
        assert "me/mine" in (out / name).read_text()
        assert str(model_folder) not in (out / name).read_text()
    names = {path.name for path in out.iterdir()}
    assert names == {TENSORS, CONFIG, OWN, SUMS, "README.md"}
    assert (out / TENSORS).read_bytes() == (stored / "best" / TENSORS).read_bytes()
    assert read(out / CONFIG)["base_model_name_or_path"] == "me/mine"
    assert read_metadata(out).backbone_name == "me/mine"
    np.testing.assert_array_equal(load_prefix(out, backbone).keys, make().keys)
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["base_model"] == "me/mine" and front["library_name"] == "peft"
    for part in (fingerprint(backbone), '"kind": "mlp"', "1.25", "5.24", "shifted"):
        assert part in text
    # Exporting again replaces it, card and all, if that is wanted.
    code, text = run("export", out, "--out", out)
    assert code == 2 and "holds a prefix already" in text
    assert run("export", out, "--out", out, "--overwrite")[0] == 0


def test_nothing_else_is_replaced(run, stored, tmp_path):
    """Neither a run's own prefix nor a page of somebody else, whatever is asked for."""
    run_folder, page = tmp_path / "trained", tmp_path / "page"
    shutil.copytree(stored, run_folder)
    (run_folder / "config.json").write_text("{}")
    page.mkdir()
    (page / "README.md").write_text("mine")
    before = (run_folder / "best" / TENSORS).read_bytes()
    for command in (("export", stored), ("shorten", stored, "--length", 1)):
        for out, message in (
            (run_folder / "best", "belongs to the run in"),
            (page, "holds other things (README.md)"),
        ):
            code, text = run(*command, "--out", out, "--overwrite")
            assert code == 2 and message in text, text
    assert (run_folder / "best" / TENSORS).read_bytes() == before
    assert (page / "README.md").read_text() == "mine"


def test_peft_loads_an_export_and_its_backbone_by_name(run, stored, tmp_path, backbone):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    out, model = tmp_path / "out", tmp_path / "model"
    assert run("export", stored, "--out", out, "--with-backbone", model)[0] == 0
    peer = peft.AutoPeftModelForCausalLM.from_pretrained(out).eval()
    tokens = np.array([[7, 8, 9, 10], [3, 1, 4, 1]])
    with torch.no_grad():
        expected = peer(input_ids=torch.tensor(tokens)).logits.numpy()
    kv = load_prefix(out, load_backbone(model))
    ours = jax.jit(lambda model, *x: model(*x))(backbone, tokens, kv)
    np.testing.assert_allclose(ours, expected, **LOGITS)
    again = ("--out", out, "--overwrite", "--with-backbone", model)
    assert run("export", stored, *again)[0] == 0


def test_a_base_model_in_a_folder_is_the_same_backbone(
    run, stored, tmp_path, backbone, small, model_folder, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "mine")
    save_backbone(tmp_path / "small", small)
    other = GPT2(backbone.config, key=jax.random.key(1))
    save_backbone(tmp_path / "other", other)
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("small", "not the backbone that .* configuration differs"),
        ("other", "not the backbone that .* weights differ"),
        ("empty", "config.json is missing"),
        ("tiny", "base model tiny is neither a name on the Hugging Face hub"),
        ("no where", "base model no where is neither a name on the Hugging Face hub"),
    ):
        with pytest.raises(InputError, match=message):
            export_prefix(stored / "best", "out", base_model=name)
        assert not (tmp_path / "out").exists()
    code, text = run("export", stored, "--out", "out", "--base-model", "mine")
    assert code == 0 and "not checked" not in text
    path = str((tmp_path / "mine").resolve())
    assert read(tmp_path / "out" / CONFIG)["base_model_name_or_path"] == path
    assert read_metadata("out").backbone_name == path


def test_a_backbone_that_is_gone_is_not_named(run, stored, tmp_path):
    record = read(stored / "best" / OWN)
    record["backbone"]["name"] = str(tmp_path / "gone")
    (stored / "best" / OWN).write_text(json.dumps(record))
    unseal(stored / "best")
    code, text = run("export", stored, "--out", tmp_path / "out")
    assert code == 0 and "base model: none" in text
    assert read(tmp_path / "out" / CONFIG)["base_model_name_or_path"] is None


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m"])
def test_our_own_names_are_no_names_for_peft(run, stored, tmp_path, name):
    record = read(stored / "best" / OWN)
    record["backbone"]["name"] = name
    (stored / "best" / OWN).write_text(json.dumps(record))
    unseal(stored / "best")
    code, text = run("export", stored, "--out", tmp_path / "out")
    assert code == 0 and "--with-backbone" in text
    assert read(tmp_path / "out" / CONFIG)["base_model_name_or_path"] is None
    assert "base_model:" not in (tmp_path / "out" / "README.md").read_text()


def test_what_peft_cannot_represent_is_refused(
    run, tmp_path, backbone, make, stored, model_folder
):
    save_prefix(tmp_path / "u", make("unshifted"), backbone=backbone)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    shutil.copytree(stored / "best", tmp_path / "peft")
    as_by_peft(tmp_path / "peft")
    out = tmp_path / "out"
    (tmp_path / "run" / "config.json").write_text("{}")
    for arguments, message in (
        (["u", "--out", out], "unshifted positions"),
        (["peft", "--out", out], "PEFT wrote it"),
        (["nowhere", "--out", out], "nowhere does not exist"),
        (["run", "--out", tmp_path / "other"], "thesis.tex"),
        (["run", "--out", tmp_path / "run/best/x"], "is inside"),
        (["run", "--out", tmp_path / "run/best"], "belongs to the run"),
        (["run", "--out", out, "--base-model", "tiny"], "neither a name on the"),
        (["run", "--out", out, "--with-backbone", tmp_path / "other"], "other things"),
        (["run", "--out", out, "--with-backbone", out / "b"], "is in --out"),
    ):
        code, text = run("export", tmp_path / arguments[0], *arguments[1:])
        assert code == 2 and message in text, text
        assert not out.exists()


def test_an_import_of_an_export_is_the_prefix(run, stored, tmp_path, backbone, make):
    out, again = tmp_path / "out", tmp_path / "again"
    run("export", stored, "--out", out)
    as_by_peft(out)  # now it might be PEFT's own
    code, text = run("import", out, "--out", again, "--task", "table_to_text")
    assert code == 0 and "PEFT PREFIX_TUNING: 4 positions" in text
    assert fingerprint(backbone) in text and str(again) in text
    assert "how a prompt begins and ends is not stored" in text
    np.testing.assert_array_equal(load_prefix(again, backbone).keys, make().keys)
    assert read_metadata(again).task == "table_to_text"


def test_what_cannot_be_imported_is_explained(run, stored, tmp_path, model_folder):
    peft, gone, out = tmp_path / "peft", tmp_path / "gone", tmp_path / "out"
    for folder, name in ((peft, None), (gone, "/nowhere/model")):
        shutil.copytree(stored / "best", folder)
        as_by_peft(folder)
        config = read(folder / CONFIG) | {"base_model_name_or_path": name}
        (folder / CONFIG).write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()
    lora = tmp_path / "lora"
    shutil.copytree(gone, lora)
    (lora / CONFIG).write_text(json.dumps(config | {"peft_type": "LORA"}))
    for arguments, message in (
        ([stored / "best", "--out", out], "needs no import"),
        ([stored, "--out", out], "needs no import"),
        ([tmp_path / "nowhere", "--out", out], "does not exist"),
        ([tmp_path / "empty", "--out", out], "no weights in"),
        ([model_folder, "--out", out], "holds a whole model"),
        ([peft, "--out", out], "does not say which backbone"),
        ([peft / TENSORS, "--out", out], "does not say which backbone"),
        ([gone, "--out", out], "say with --backbone"),
        ([lora, "--out", out], "'LORA'; only PREFIX_TUNING and PROMPT_TUNING"),
        (
            [peft, "--out", out, "--backbone", "tiny"],
            "another backbone: num_layers 3 there, 4 here",
        ),
        ([peft, "--out", stored], "holds other things"),
    ):
        code, text = run("import", *arguments)
        assert code == 2 and message in text, text
        assert not out.exists()
    assert run("import", peft, "--out", out, "--backbone", model_folder)[0] == 0
