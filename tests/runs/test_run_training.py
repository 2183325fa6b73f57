"""Whole runs: what they leave, what they refuse."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import prefix_jax.runs.compare as compare_module
import prefix_jax.runs.train as train_module
from prefix_jax.config import (
    BackboneConfig,
    Config,
    DecodeConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from prefix_jax.data.tokens import Row
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError
from prefix_jax.learning.split import finite
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.weights import fingerprint
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.compare import compare
from prefix_jax.runs.evaluate import evaluate
from prefix_jax.runs.prepare import Rows, prepare
from prefix_jax.runs.train import train
from prefix_jax.storage.artifact import load_prefix
from prefix_jax.storage.log import read_metrics
from prefix_jax.storage.metadata import read_metadata
from runs.support import lines, quiet


def test_a_run_leaves_what_it_promises(config, finished, model_folder):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "samples.jsonl",
        "best",
        "last",
        "curves.png",
    }
    record = json.loads((finished / "config.json").read_text())
    assert Config.from_dict(record["config"]) == config.resolved()
    assert record["calls"][0]["versions"]["jax"] == jax.__version__
    steps = [(line["step"], line["split"]) for line in read_metrics(finished)]
    assert steps == [
        (0, "validation"),
        *((step, "train") for step in (1, 2, 3)),
        (3, "validation"),
        *((step, "train") for step in (4, 5, 6)),
        (6, "validation"),
        (7, "train"),
        (7, "validation"),
    ]
    losses = [x["loss"] for x in read_metrics(finished) if x["split"] == "validation"]
    assert losses[-1] < losses[0]
    metadata = read_metadata(finished / "best")
    assert metadata.backbone_fingerprint == fingerprint(
        load_backbone(str(model_folder))
    )


def test_a_checkpoint_holds_no_backbone(config, finished, model_folder):
    """Prefix, two moments and little else: far fewer bytes than the weights."""
    stored = sum(
        path.stat().st_size
        for path in (finished / "checkpoints" / "7" / "state").rglob("*")
        if path.is_file()
    )
    weights = (model_folder / "model.safetensors").stat().st_size
    assert stored < weights / 2


@pytest.mark.parametrize("method", ["prefix", "full"])
def test_a_run_that_diverges_ends_and_its_checkpoint_stays(config, tmp_path, method):
    diverging = dataclasses.replace(
        config,
        optim=OptimConfig(learning_rate=2e38, schedule="constant"),
        train=dataclasses.replace(
            config.train, method=method, steps=4, checkpoint_every=1, eval_every=4
        ),
    )
    for _ in range(2):  # going on from the checkpoint, it diverges again
        with pytest.raises(InputError, match=r"at step \d .* lower optim"):
            train(diverging, tmp_path)
    whole = load_backbone(diverging.backbone.name)
    if method == "prefix":
        assert np.isfinite(load_prefix(tmp_path / "last", whole).keys).all()
    else:
        assert finite(load_backbone(tmp_path / "last"))


def test_a_finished_run_is_not_trained_again(config, finished):
    before = lines(finished)
    outcome = train(config, finished, quiet())
    assert outcome.finished and lines(finished) == before


def test_no_steps_leave_the_untrained_start(config, tmp_path):
    untrained = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=0)
    )
    for _ in range(2):
        outcome = train(untrained, tmp_path, quiet())
        assert outcome.finished and outcome.step == outcome.best.step == 0
        assert [x["split"] for x in read_metrics(tmp_path)] == ["validation"]
    best, last = (
        tmp_path / name / "adapter_model.safetensors" for name in ("best", "last")
    )
    assert best.read_bytes() == last.read_bytes()
    assert (tmp_path / "curves.png").exists()
    evaluation = evaluate(untrained, tmp_path, split="validation", console=quiet())
    assert evaluation.loss == outcome.best.loss


def test_another_recipe_in_the_same_folder_is_refused(config, finished, monkeypatch):
    """Before backbone and data are loaded."""
    monkeypatch.setattr(train_module, "prepare", lambda config: pytest.fail("loaded"))
    other = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, learning_rate=0.5)
    )
    with pytest.raises(InputError, match=r"optim.learning_rate: 0.01 there, 0.5 now"):
        train(other, finished, quiet())
    monkeypatch.setattr(compare_module, "prepare", train_module.prepare)
    (finished.parent / "comparison").mkdir()
    (finished.parent / "comparison" / "prefix").symlink_to(finished)
    with pytest.raises(InputError, match=r"optim.learning_rate: 0.01 there, 0.5 now"):
        compare(other, finished.parent / "comparison", console=quiet())


def test_a_run_knows_its_rows_and_backbone_wherever_they_lie(
    config, finished, model_folder, tmp_path
):
    data, model, run = tmp_path / "data", tmp_path / "model", tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.copytree(config.data.path, data)
    shutil.copytree(model_folder, model)
    moved = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, name=str(model)),
        data=dataclasses.replace(config.data, path=str(data)),
    )
    assert train(moved, run, quiet()).finished
    train_file = data / "train.jsonl"
    train_file.write_text(train_file.read_text().replace("Mill 7", "Mill 8"))
    message = "training rows: '36 rows, .* there, '36 rows, .* now\n.*--workdir"
    with pytest.raises(InputError, match=message) as error:
        train(moved, run, quiet())
    assert "validation" not in str(error.value)


@pytest.mark.parametrize("field", ["tokens", "loss_mask"])
def test_the_fingerprint_of_rows_sees_every_number_and_border(field):
    def fingerprint(*rows):
        made = [Row(np.array(t, np.int32), np.array(m, bool)) for t, m in rows]
        return Rows(made, (), "", (8,)).fingerprint

    rows = [([1, 2, 3], [0, 1, 1]), ([4], [1])]
    other = [([1, 2, 3], [0, 0, 1]), ([4], [1])]
    if field == "tokens":
        other = [([1, 2, 5], [0, 1, 1]), ([4], [1])]
    assert fingerprint(*rows) == fingerprint(*rows) != fingerprint(*other)
    assert fingerprint(*rows) != fingerprint(*reversed(rows))
    parted = [([1, 2], [0, 1]), ([3, 4], [1, 1])]
    assert fingerprint(*rows) != fingerprint(*parted)


def test_an_infix_needs_a_source(config, model_folder, tmp_path):
    (tmp_path / "train.txt").write_text("The mill by the river is old. " * 60)
    data = DataConfig(
        task="language_modelling",
        path=str(tmp_path),
        max_length=32,
        validation="train",
        test=None,
    )
    infix = PrefixConfig(length=4, placement="infix")
    config = dataclasses.replace(config, data=data, prefix=infix)
    setup = prepare(config)
    with pytest.raises(InputError, match="has no source that an infix could come"):
        setup.initial_params(setup.rows("train"))


def test_language_modelling_trains_and_samples(model_folder, tmp_path):
    (tmp_path / "train.txt").write_text("The mill by the river is old. " * 60)
    (tmp_path / "validation.txt").write_text("The river is old. " * 40)
    config = Config(
        backbone=BackboneConfig(name=str(model_folder), weights="random"),
        data=DataConfig(
            task="language_modelling", path=str(tmp_path), max_length=32, test=None
        ),
        optim=OptimConfig(name="muon", learning_rate=1e-3),
        train=TrainConfig(
            method="full", steps=4, batch_size=4, eval_every=4, samples=1
        ),
        decode=DecodeConfig(max_new_tokens=4),
        mesh=MeshConfig(data=1),
    )
    train(config, tmp_path / "run", quiet())
    validation = [x for x in lines(tmp_path / "run") if x["split"] == "validation"]
    assert validation[-1]["loss"] < validation[0]["loss"]
    again = load_backbone(str(tmp_path / "run" / "best"))
    assert np.isfinite(np.asarray(again.token_embedding[...])).all()
