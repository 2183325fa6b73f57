"""What `inspect` says of a prefix, against numpy and the attention itself."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import grouped_too
from folders import as_by_peft, unseal
from rounding import SUM

from prefix_jax.cli import main
from prefix_jax.errors import InputError
from prefix_jax.learning.split import count, split
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.inspect import inspect_prefix
from prefix_jax.runs.show import bar, plot_mass
from prefix_jax.storage.artifact import save_prefix

TEXTS = ("The mill", "by the river is old")


@pytest.fixture(scope="module")
def kv(backbone):
    config = PrefixConfig(init="random", length=4)
    return init_prefix(backbone, config, key=jax.random.key(0))()


@pytest.fixture
def folder(tmp_path, backbone, kv, model_folder):
    save_prefix(
        tmp_path / "p",
        kv,
        backbone=backbone,
        scores={"validation_loss": 1.25},
        base_model_name=str(model_folder),
    )
    return tmp_path / "p"


@grouped_too
@pytest.mark.parametrize("settings", [{"layers": (0, 2)}, {"lengths": (1, 0, 4)}])
def test_numbers_are_those_that_were_trained(backbone, settings, tmp_path):
    if "layers" in settings:
        settings = settings | {"length": 4}
    config = PrefixConfig(init="random", **settings)
    prefix = init_prefix(backbone, config, key=jax.random.key(0))
    save_prefix(tmp_path / "p", prefix, backbone=backbone)
    trainable, _ = split({"backbone": backbone, "prefix": prefix}, "prefix")
    assert inspect_prefix(tmp_path / "p").numbers == count(trainable)


@grouped_too
def test_norms_sizes_and_attention(folder, backbone, tokenizer, kv):
    found = inspect_prefix(folder, TEXTS)
    assert found.length == 4 and found.numbers == kv.keys.size * 2
    assert found.share == found.numbers / count(backbone)
    assert found.backbone_found.startswith("the same")
    rows = [tokenizer.encode(text) for text in TEXTS]

    @jax.jit
    def look(tokens):
        alone = backbone.forward(tokens, collect=True).kv
        seen = backbone.forward(tokens, prefix=kv, observe=True).prefix_mass
        return alone.keys, seen

    # Each text alone, without padding.
    keys, seen = zip(*(look(jnp.asarray([row])) for row in rows), strict=True)
    norms = [np.linalg.norm(x, axis=-1) for x in keys]  # L 1 T H
    for number, layer in enumerate(found.layers):
        own = np.concatenate([x[number].ravel() for x in norms]).mean()
        expected = np.linalg.norm(kv.keys[number], axis=-1).mean()
        assert layer.key_norm == pytest.approx(expected, rel=SUM["rtol"])
        assert layer.key_ratio == pytest.approx(expected / own, rel=SUM["rtol"])
        mass = np.concatenate([x[number, 0] for x in seen], axis=-1).mean(-1)
        np.testing.assert_allclose(layer.mass, mass, **SUM)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main(["inspect", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return exit.value.code, printed.out + printed.err


def test_table_json_and_picture(folder, tmp_path, capsys):
    code, text = run(capsys, folder, "--plot", tmp_path / "mass.png")
    assert code == 0 and "validation_loss 1.25" in text and "█" in text
    assert (tmp_path / "mass.png").read_bytes()[1:4] == b"PNG"
    code, text = run(capsys, folder, "--json", "--text", TEXTS[0])
    found = json.loads(text)
    assert code == 0 and found["texts"] == [TEXTS[0]]
    assert len(found["layers"][0]["mass"]) == 4


def test_without_its_backbone_the_files_speak(folder, tmp_path, capsys):
    own = folder / "prefix_jax.json"
    record = json.loads(own.read_text())
    whole = inspect_prefix(folder, TEXTS)
    for change, message in (
        ({"name": "/nowhere/model"}, "could not be loaded: folder /nowhere"),
        ({"fingerprint": "0123"}, "its weights differ"),
        ({"name": None}, "does not name it"),
    ):
        changed = record | {"backbone": record["backbone"] | change}
        own.write_text(json.dumps(changed))
        unseal(folder)
        found = inspect_prefix(folder)
        assert message in found.backbone_found
        assert found.share is None and found.texts == ()
        for layer, full in zip(found.layers, whole.layers, strict=True):
            assert layer.mass is None and layer.key_norm == full.key_norm
        assert run(capsys, folder)[0] == 0
        with pytest.raises(InputError, match="no attention to draw"):
            plot_mass(found, tmp_path / "mass.png")


def test_a_folder_of_peft(folder, tmp_path):
    ours = inspect_prefix(folder, TEXTS)
    as_by_peft(folder)
    (tmp_path / "run").mkdir()
    shutil.copytree(folder, tmp_path / "run" / "best")
    theirs = inspect_prefix(tmp_path / "run", TEXTS)
    assert theirs.written_by == "PEFT" and "same shape" in theirs.backbone_found
    assert theirs.layers == ours.layers


def test_bad_requests_are_explained(folder, tmp_path, capsys):
    for arguments, message in (
        ([tmp_path / "nowhere"], "nowhere does not exist; give the folder"),
        ([folder, "--text", " "], "is empty"),
        ([folder, "--text", "mill " * 90], "exceed the backbone's 64 positions"),
        ([folder, "--backbone", "tinny"], "did you mean"),
        ([folder, "--plot", tmp_path / "no" / "x.png"], "cannot write the picture"),
        ([folder, "--plot", tmp_path], "cannot write the picture"),
    ):
        code, text = run(capsys, *arguments)
        assert code == 2 and message in text, text


def test_bars_are_as_long_as_what_they_show():
    assert bar(0.0) == "" and bar(1.0, 4) == "████" and bar(7.0, 4) == "████"
    assert bar(0.5, 4) == "██" and bar(1 / 32, 4) == "▏" and bar(31 / 32, 4) == "███▉"
