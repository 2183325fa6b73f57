"""Whole runs on a random backbone: train, resume, evaluate, compare, generate."""

import dataclasses
import io
import json
import os
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

import prefix_jax.runs.train as train_module
from prefix_jax.cli import main
from prefix_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DecodeConfig,
    MeshConfig,
    OptimConfig,
    PrefixConfig,
    TrainConfig,
)
from prefix_jax.errors import InputError
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.weights import fingerprint
from prefix_jax.runs.compare import compare
from prefix_jax.runs.evaluate import evaluate
from prefix_jax.runs.train import train
from prefix_jax.storage.artifact import load_prefix, read_metadata
from prefix_jax.storage.log import read_metrics

AREAS = ["riverside", "old town", "harbour", "hill"]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, number in (("train", 24), ("validation", 5), ("test", 4)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(number):
                area = AREAS[i % len(AREAS)]
                source = f"name : Mill {i} | area : {area}"
                targets = [f"Mill {i} is by the {area}.", f"The {area} has Mill {i}."]
                row = {"source": source, "references": targets[: 1 + i % 2]}
                file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def config(model_folder, data_folder):
    return Config(
        backbone=BackboneConfig(name=str(model_folder)),
        prefix=PrefixConfig(length=4, dropout=0.1),
        data=DataConfig(path=str(data_folder), max_length=60, overflow="error"),
        optim=OptimConfig(learning_rate=1e-2),
        train=TrainConfig(
            steps=7,
            batch_size=8,
            eval_every=3,
            checkpoint_every=2,
            log_every=1,
            samples=1,
        ),
        decode=DecodeConfig(max_new_tokens=4),
        mesh=MeshConfig(data=1),
    )


def quiet():
    return Console(file=io.StringIO(), width=120)


def lines(workdir):
    """The metrics, without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if k != "tokens_per_second"}
        for line in read_metrics(workdir)
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Work folder of the uninterrupted run (made by the first test that asks)."""
    return tmp_path_factory.mktemp("runs") / "straight"


@pytest.fixture
def finished(config, straight):
    if not straight.exists():
        train(config, straight, quiet())
    return straight


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
    assert Config.from_dict(record["config"]) == config
    assert record["versions"]["jax"] == jax.__version__
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


class Crash(Exception):
    pass


def test_crash_and_resume_equals_the_straight_run(
    config, finished, tmp_path, monkeypatch
):
    """Law 8: bit for bit, the order of the data, dropout and the metrics included."""
    put_batch, calls = train_module.put_batch, []

    def crash_at_fifth(batch, mesh):
        calls.append(1)
        if len(calls) == 6:
            raise Crash
        return put_batch(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", crash_at_fifth)
    with pytest.raises(Crash):
        train(config, tmp_path / "run", quiet())
    monkeypatch.setattr(train_module, "put_batch", put_batch)
    outcome = train(config, tmp_path / "run", quiet())
    assert outcome.finished and outcome.step == 7
    for name in ("best", "last"):
        one, other = finished / name, tmp_path / "run" / name
        file = "adapter_model.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()
    assert lines(finished) == lines(tmp_path / "run")
    assert (finished / "samples.jsonl").read_text() == (
        tmp_path / "run" / "samples.jsonl"
    ).read_text()


def test_interrupt_saves_and_says_how_to_go_on(config, tmp_path, monkeypatch):
    put_batch, calls = train_module.put_batch, []

    def interrupt_at_third(batch, mesh):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return put_batch(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", interrupt_at_third)
    console = quiet()
    outcome = train(config, tmp_path, console)
    assert not outcome.finished and outcome.step == 3
    assert "run the same command again to go on" in console.file.getvalue()
    assert (tmp_path / "checkpoints" / "3").is_dir()


def test_a_finished_run_is_not_trained_again(config, finished):
    before = lines(finished)
    outcome = train(config, finished, quiet())
    assert outcome.finished and lines(finished) == before


def test_another_recipe_in_the_same_folder_is_refused(config, finished):
    other = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, learning_rate=0.5)
    )
    with pytest.raises(InputError, match=r"optim.learning_rate: 0.01 there, 0.5 now"):
        train(other, finished, quiet())


def test_evaluate_scores_the_best_prefix(config, finished, model_folder):
    result = evaluate(config, finished, split="validation", console=quiet())
    best = min(
        line["loss"] for line in read_metrics(finished) if line["split"] == "validation"
    )
    assert result.loss == pytest.approx(best, rel=1e-5)
    assert result.sources == 5 and result.bleu is not None
    written = (finished / "outputs_validation_best.jsonl").read_text().splitlines()
    assert len(written) == 5 and json.loads(written[0])["references"]
    alone = evaluate(config, finished, which="none", console=quiet())
    assert alone.loss != result.loss


def test_compare_trains_each_method_and_tabulates(config, tmp_path):
    short = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=2, eval_every=2)
    )
    console = quiet()
    rows = compare(
        short,
        tmp_path,
        methods=("none", "prefix", "top2", "full"),
        learning_rates={"full": 1e-3, "top2": 1e-3},
        console=console,
    )
    assert rows is not None
    by_method = {row.method: row for row in rows}
    assert by_method["none"].trained == by_method["none"].stored_bytes == 0
    assert by_method["full"].share == 1.0
    assert by_method["prefix"].share < by_method["top2"].share < 1.0
    assert by_method["prefix"].stored_bytes < by_method["full"].stored_bytes / 10
    assert by_method["full"].learning_rate == 1e-3
    shown = console.file.getvalue()
    assert "full fine-tuning" in shown and "reference" in shown
    assert (tmp_path / "comparison.json").exists()
    assert (tmp_path / "curves.png").exists()
    tuned = load_backbone(str(tmp_path / "full" / "best"))
    assert fingerprint(tuned) != fingerprint(load_backbone(config.backbone.name))


def recipe(path, config):
    path.write_text(f"from prefix_jax.config import *\nconfig = {config!r}\n")
    return str(path)


def run_cli(*arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    return exit.value.code


def test_generate_from_arguments_file_and_stdin(
    finished, tmp_path, capsys, monkeypatch
):
    prompts = ["name : Mill 1 | area : hill", "name : Mill 2 | area : harbour"]
    options = ["--prefix", str(finished), "--decode.max-new-tokens", "4"]
    assert run_cli("generate", *prompts, *options) == 0
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 2
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    assert run_cli("generate", "--file", str(tmp_path / "prompts.txt"), *options) == 0
    assert capsys.readouterr().out == first
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts)))
    assert run_cli("generate", *options) == 0
    assert capsys.readouterr().out == first


def test_command_line_trains_with_overrides(config, tmp_path, capsys):
    path = recipe(tmp_path / "recipe.py", config)
    workdir = tmp_path / "run"
    options = ["--workdir", str(workdir), "--train.steps", "1", "--prefix.length", "3"]
    assert run_cli("train", path, *options) == 0
    kv = load_prefix(workdir / "best", load_backbone(config.backbone.name))
    assert kv.length == 3
    assert run_cli("evaluate", path, *options, "--split", "validation") == 0
    assert "BLEU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "needs a recipe first"),
        (["train", "nowhere.py"], "recipe nowhere.py does not exist"),
        (["train", "RECIPE", "--prefix.lenght", "3"], "--prefix.length"),
        (["train", "RECIPE", "--prefix.length", "0"], "must be at least 1"),
        (["train", "RECIPE", "--prefix.length", "60"], "lower data.max_length"),
        (["train", "RECIPE", "--data.path", "nowhere"], "nowhere"),
        (["train", "RECIPE", "--train.batch-size", "0"], "train.batch_size"),
        (["evaluate", "RECIPE", "--workdir", "nowhere"], "nowhere"),
        (["generate", "text", "--prefix", "nowhere"], "nowhere"),
        (["generate", "text", "--backbone", "tinny"], "did you mean"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_gets_wrong_is_explained(
    config, tmp_path, capsys, arguments, message, monkeypatch
):
    path = recipe(tmp_path / "recipe.py", config)
    monkeypatch.chdir(tmp_path)
    code = run_cli(*[path if word == "RECIPE" else word for word in arguments])
    assert code == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).split())
    assert "Traceback" not in captured.err


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
