"""A small sweep: paired cells, resumed, each the run that `train` makes of it."""

import json

import numpy as np
import pytest

import prefix_jax.runs.prepare as prepare_module
import prefix_jax.runs.sweep as sweep_module
from prefix_jax.cli_options import options_of
from prefix_jax.errors import InputError
from prefix_jax.runs.grid import make_cells
from prefix_jax.runs.record import read_record
from prefix_jax.runs.sweep import sweep
from runs.support import lines, quiet, recipe, run_cli

AXES = {
    "grid": {"train.method": ("prefix", "full"), "prefix.length": (2,)},
    "sizes": (8, 12),
    "subsamples": 2,
}


@pytest.fixture(scope="module")
def short(config):
    return config.replaced(
        {
            "train.steps": 2,
            "train.eval_every": 1,
            "train.samples": 0,
            "data.buckets": (60,),
            "score.metrics": ("bleu",),
        }
    )


@pytest.fixture(scope="module")
def swept(short, tmp_path_factory):
    """(workdir, points, what was loaded) of a finished sweep; tests only read it."""
    workdir, loaded = tmp_path_factory.mktemp("sweep"), []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_backbone", "load_examples"):
            function = getattr(prepare_module, name)
            patch.setattr(
                prepare_module,
                name,
                lambda *a, f=function, **k: loaded.append(a) or f(*a, **k),
            )
        points = sweep(short, workdir, **AXES, limit=2, console=quiet())
    return workdir, points, loaded


def test_backbone_and_data_are_loaded_once(swept):
    _, _, loaded = swept
    assert len(loaded) == 1 + 3  # the backbone, and each split


def test_cells_are_paired(swept):
    """Both methods see the same subsamples and dev sets, which differ."""
    workdir, *_ = swept
    rows = {}
    for cell in json.loads((workdir / "sweep.json").read_text())["cells"]:
        marks = read_record(workdir / cell["folder"])["fingerprints"]
        rows.setdefault(cell["overrides"]["train.method"], []).append(
            (marks["training rows"], marks["validation rows"])
        )
    assert rows["prefix"] == rows["full"]
    training, validation = zip(*rows["full"], strict=True)
    assert [row.split()[0] for row in training] == ["8", "8", "12", "12"]
    assert len({*training}) == len({*validation}) == 4


def test_points_are_of_the_cells_written(swept):
    workdir, points, _ = swept
    record = json.loads((workdir / "sweep.json").read_text())
    assert record["split"] == "test" and record["planned"] == len(record["cells"]) == 8
    for point, pair in zip(points, np.reshape(record["cells"], (4, 2)), strict=True):
        for name in ("validation_loss", "loss", "bleu"):
            values = [cell["numbers"][name] for cell in pair]
            assert point.mean[name] == np.mean(values)
            assert point.std[name] == np.std(values, ddof=1)
        for cell in pair:
            scores = workdir / cell["folder"] / "scores_test_best.json"
            assert json.loads(scores.read_text())["loss"] == cell["numbers"]["loss"]
            losses = [
                (line["loss"], line["step"])
                for line in lines(workdir / cell["folder"])
                if line["split"] == "validation"
            ]
            assert min(losses) == (cell["numbers"]["validation_loss"], cell["step"])
    assert (workdir / "sweep.png").exists()


def test_a_sweep_that_is_done_trains_and_scores_nothing(swept, short, monkeypatch):
    workdir, points, _ = swept
    calls = []
    monkeypatch.setattr(sweep_module, "run_trial", lambda *a: calls.append(a))
    before = (workdir / "sweep.json").read_text()
    assert sweep(short, workdir, **AXES, limit=2, console=quiet()) == points
    assert not calls and (workdir / "sweep.json").read_text() == before


def test_a_sweep_goes_on_with_what_is_left(swept, short, tmp_path, monkeypatch, capsys):
    """Here with the cells of one more length, the first of which is interrupted."""
    calls = []
    monkeypatch.setattr(sweep_module, "run_trial", lambda *a: calls.append(a[1].name))
    path, workdir = recipe(tmp_path / "recipe.py", short), swept[0]
    axes = "--grid train.method prefix full --grid prefix.length 2 3 --sizes 8"
    axes += f" --subsamples 2 --limit 2 --workdir {workdir}"
    assert run_cli("sweep", path, *axes.split()) == 130
    name = "train.method=prefix,prefix.length=3,data.limit=8,data.subsample_seed=1"
    assert calls == [name]
    assert "2 of 6 cells are done; run the same command" in capsys.readouterr().out
    # Scores of another length are other scores.
    assert sweep(short, workdir, **AXES, limit=1, console=quiet()) is None
    assert len(calls) == 2


@pytest.mark.parametrize("number", [0, 4], ids=["prefix", "full"])
def test_a_cell_is_the_run_that_train_makes_of_its_options(
    swept, short, tmp_path, number
):
    axes = AXES["grid"], AXES["sizes"], AXES["subsamples"], ()
    cell = make_cells(short, *axes)[number]
    path, alone = recipe(tmp_path / "recipe.py", short), tmp_path / "alone"
    options = options_of(cell.overrides)
    assert run_cli("train", path, *options, "--workdir", str(alone)) == 0
    within = swept[0] / cell.name
    assert lines(alone) == lines(within)
    for name in ("best", "last"):
        [one], [other] = ([*(f / name).glob("*.safetensors")] for f in (alone, within))
        assert one.read_bytes() == other.read_bytes()


def test_a_cell_that_fails_costs_no_other(short, tmp_path, capsys):
    path = recipe(tmp_path / "recipe.py", short)
    options = "--grid prefix.length 60 2 --split validation --workdir"
    assert run_cli("sweep", path, *options.split(), str(tmp_path / "sweep")) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "prefix.length=60 failed: prefix length 60 + " in shown
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    failed, done = record["cells"]
    assert "lower data.max_length" in failed["failed"] and not failed["numbers"]
    assert done["failed"] is None
    # All of a small validation split is read each time.
    assert done["numbers"]["loss"] == done["numbers"]["validation_loss"]


def test_another_recipe_is_kept_out(swept, short, capsys):
    """What is there stays; another grid of the same recipe may go on."""
    workdir, _, _ = swept
    before = (workdir / "sweep.json").read_text()
    other = short.replaced({"train.steps": 3})
    with pytest.raises(InputError, match=r"another recipe \(train.steps: 2 there, 3"):
        sweep(other, workdir, grid={"prefix.length": (1,)}, console=quiet())
    assert (workdir / "sweep.json").read_text() == before


def test_a_subsample_larger_than_the_split_is_refused(short, tmp_path):
    points = sweep(short, tmp_path, sizes=(10**6,), subsamples=1, console=quiet())
    assert points is not None and points[0].failed == 1
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert "data.limit is 1000000" in record["cells"][0]["failed"]
