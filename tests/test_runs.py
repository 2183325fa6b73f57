"""Whole runs on a random backbone: train, resume, evaluate, compare, generate."""

import dataclasses
import io
import itertools
import json
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import prefix_jax.runs.train as train_module
from prefix_jax.cli import main
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
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.weights import fingerprint
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.compare import compare
from prefix_jax.runs.evaluate import evaluate
from prefix_jax.runs.prepare import Rows, prepare
from prefix_jax.runs.result import save_result
from prefix_jax.runs.train import train
from prefix_jax.storage import artifact
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


class Crash(Exception):
    pass


def test_crash_and_resume_equals_the_straight_run(
    config, finished, tmp_path, monkeypatch
):
    """Law 8: bit for bit, the order of the data, dropout and the metrics included."""
    put_batch, calls = train_module.put_batch, []

    def crash_at_sixth(batch, mesh):
        calls.append(1)
        if len(calls) == 6:
            raise Crash
        return put_batch(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", crash_at_sixth)
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
    clock = itertools.count(0.0, 1000.0)
    fake_time = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(train_module, "time", fake_time)
    console = quiet()
    outcome = train(config, tmp_path, console)
    assert not outcome.finished and outcome.step == 3
    assert "run the same command again to go on" in console.file.getvalue()
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert read_metadata(tmp_path / "last").scores == {"step": 3}
    clock = itertools.count(0.0)
    resumed = train(config, tmp_path, quiet())
    assert outcome.seconds >= 1000 and resumed.seconds > outcome.seconds
    assert train(config, tmp_path, quiet()).seconds == resumed.seconds


@pytest.mark.parametrize("step", [4, 7], ids=["midway", "at the end"])
def test_a_kill_before_the_last_prefix_is_kept_is_mended(
    config, finished, tmp_path, monkeypatch, step
):
    kept, save_result = [], train_module.save_result

    def crash_once(folder, setup, params, scores):
        kept.append((folder.name, scores["step"]))
        if kept[-1] == ("last", step) and kept.count(("last", step)) == 1:
            raise Crash
        save_result(folder, setup, params, scores)

    monkeypatch.setattr(train_module, "save_result", crash_once)
    with pytest.raises(Crash):
        train(config, tmp_path, quiet())
    kept_before = len(kept)
    train(config, tmp_path, quiet())
    assert kept[kept_before] == ("last", step)
    one, other = (
        run / "last" / "adapter_model.safetensors" for run in (finished, tmp_path)
    )
    assert one.read_bytes() == other.read_bytes()


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
        with pytest.raises(InputError, match=r"at step \d .* diverged; lower optim"):
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
    assert evaluation.loss == pytest.approx(outcome.best.loss, rel=1e-5)


def test_another_recipe_in_the_same_folder_is_refused(config, finished):
    other = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, learning_rate=0.5)
    )
    with pytest.raises(InputError, match=r"optim.learning_rate: 0.01 there, 0.5 now"):
        train(other, finished, quiet())


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


def test_evaluate_scores_the_best_prefix(config, finished, model_folder):
    result = evaluate(config, finished, split="validation", console=quiet())
    best = min(
        line["loss"] for line in read_metrics(finished) if line["split"] == "validation"
    )
    assert result.loss == pytest.approx(best, rel=1e-5)
    assert result.sources == 5 and list(result.scores) == [
        "bleu",
        "nist",
        "chrf",
        "rougeL",
    ]
    written = (finished / "outputs_validation_best.jsonl").read_text().splitlines()
    assert len(written) == 5 and json.loads(written[0])["references"]
    alone = evaluate(config, finished, which="none", console=quiet())
    assert alone.loss != result.loss


@pytest.mark.parametrize("method", ["prefix", "full"])
def test_a_result_is_replaced_whole(config, tmp_path, monkeypatch, method):
    setup = prepare(config)
    params = {"backbone": setup.backbone}
    if method == "prefix":
        params["prefix"] = init_prefix(
            setup.backbone, PrefixConfig(init="random"), key=jax.random.key(0)
        )
    folder = tmp_path / "best"
    save_result(folder, setup, params, {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def crash(path, *_):
        raise Crash

    # The last thing that is written of each.
    monkeypatch.setattr(type(setup.tokenizer), "save_pretrained", crash)
    monkeypatch.setattr(artifact, "write_json", crash)
    zeros = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(Crash):
        save_result(folder, setup, zeros, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


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


def test_one_batch_with_several_prefixes(config, finished, tmp_path, capsys):
    """Each row as its own prefix would write it alone."""
    other = tmp_path / "other"
    train(
        dataclasses.replace(
            config, prefix=dataclasses.replace(config.prefix, length=2)
        ),
        other,
        quiet(),
    )
    prompts = ["name : Mill 1 | area : hill", "name : Mill 2 | area : harbour"]
    alone = {}
    for name, folder in (("a", finished), ("b", other)):
        options = ["--prefix", str(folder), "--decode.max-new-tokens", "4"]
        assert run_cli("generate", *prompts, *options) == 0
        alone[name] = capsys.readouterr().out.splitlines()
    rows = [(0, "b"), (1, "a"), (0, "a"), (1, "b")]
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": prompts[i], "prefix": name}) + "\n"
            for i, name in rows
        )
    )
    both = ["--prefix", f"a={finished}", "--prefix", f"b={other}"]
    options = [*both, "--decode.max-new-tokens", "4", "--file", str(file)]
    assert run_cli("generate", *options, "--json") == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [" ".join(alone[name][i].split()) for i, name in rows]
    assert [" ".join(row["text"].split()) for row in written] == expected
    assert [row["prefix"] for row in written] == [name for _, name in rows]
    assert all(row["log_prob"] < 0 for row in written)

    file.write_text(json.dumps({"prompt": "x", "prefix": "c"}))
    assert run_cli("generate", *options) == 2
    assert 'there is no prefix "c"' in capsys.readouterr().err
    file.write_text(json.dumps({"prompt": "x"}))
    assert run_cli("generate", *options) == 2
    assert "does not name its prefix" in capsys.readouterr().err


def test_a_text_streams(finished, capsys):
    prompt = "name : Mill 1 | area : hill"
    options = ["--prefix", str(finished), "--decode.max-new-tokens", "9"]
    assert run_cli("generate", prompt, *options) == 0
    whole = capsys.readouterr().out
    assert run_cli("generate", prompt, *options, "--stream", "True") == 0
    assert capsys.readouterr().out.split() == whole.split()


def test_command_line_trains_with_overrides(config, tmp_path, capsys):
    path = recipe(tmp_path / "recipe.py", config)
    workdir = tmp_path / "run"
    options = ["--workdir", str(workdir), "--train.steps", "1", "--prefix.length", "3"]
    assert run_cli("train", path, *options) == 0
    kv = load_prefix(workdir / "best", load_backbone(config.backbone.name))
    assert kv.length == 3
    ways = [[path, *options], [*options[:2], path, *options[2:]], options[:2]]
    scores = []
    for way in ways:
        capsys.readouterr()
        assert run_cli("evaluate", *way, "--split", "validation") == 0
        scores.append(capsys.readouterr().out)
    assert "BLEU" in scores[0] and set(scores) == {scores[0]}
    decode = ["--decode.max-new-tokens", "3", "--limit", "2"]
    assert run_cli("evaluate", *decode, f"--workdir={workdir}") == 0
    assert "2 sources" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'did you mean "train"'),
        (["train"], "needs a recipe first"),
        (["train", "nowhere.py"], "recipe nowhere.py does not exist"),
        (["train", "RECIPE", "--prefix.lenght", "3"], "--prefix.length"),
        (["train", "RECIPE", "--prefix.length", "0"], "prefix.length is 0"),
        (["train", "RECIPE", "--prefix.length", "60"], "lower data.max_length"),
        (["train", "RECIPE", "--data.path", "nowhere"], "nowhere"),
        (["train", "RECIPE", "--train.batch-size", "0"], "train.batch_size"),
        (["train", "."], ". is no file; a recipe is a Python file"),
        (["train", "RECIPE", "--workdir", "recipe.py"], "recipe.py is a file"),
        (["train", "RECIPE", "--workdir", "/proc/x"], "cannot write in /proc/x"),
        (["compare", "RECIPE", "--methods"], "there is no method to compare"),
        (["compare", "RECIPE", "--limit", "-1"], "limit is -1; expected"),
        (["evaluate", "RECIPE", "--limit", "0"], "limit is 0; expected"),
        (["evaluate", "RECIPE", "--workdir", "nowhere"], "nowhere"),
        (["evaluate", "--workdir", "nowhere"], "nowhere holds no run"),
        (["evaluate"], "runs/latest holds no run"),
        (["evaluate", "--workdir"], "expected one argument"),
        (["generate", "text", "--prefix", "nowhere"], "nowhere"),
        (["generate", "text", "--backbone", "tinny"], "did you mean"),
        (["generate", "text", "--file", "x.txt"], "not both"),
        (["generate", "x", "--json", "--stream", "True"], "not JSON"),
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
