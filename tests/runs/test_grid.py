"""Which cells a sweep has, and what it makes of their numbers; nothing is trained."""

import io
import shlex
from typing import get_args

import numpy as np
import pytest
from rich.console import Console

from prefix_jax.cli_options import (
    config_of,
    options_of,
    parse,
    parse_value,
    with_recipe,
)
from prefix_jax.cli_recipes import Train
from prefix_jax.config import FIELDS, Config, OptimConfig
from prefix_jax.errors import InputError
from prefix_jax.runs.grid import Cell, make_cells
from prefix_jax.runs.summary import Result, plot_summary, print_summary, summarise
from prefix_jax.score_config import TextMetric
from runs.support import quiet, recipe, run_cli


def cells(grid=None, sizes=(), subsamples=None, seeds=(), config=Config()):
    return make_cells(config, grid or {}, sizes, subsamples, seeds)


def test_the_low_data_protocol_of_the_paper():
    methods = {"train.method": ("prefix", "full")}
    found = cells(methods, (50, 100, 200, 500), 5, (101, 102))
    assert len(found) == 2 * 4 * 5 * 2 == len({cell.name for cell in found})
    first = found[0]
    assert first.name == (
        "train.method=prefix,data.limit=50,data.subsample_seed=1,train.seed=101"
    )
    data = [Config().replaced(cell.overrides).data for cell in found]
    dev = {one.limit: one.validation_limit for one in data}
    assert dev == {50: 15, 100: 30, 200: 60, 500: 150}  # 30 % each
    # The repeats of every point are the same.
    repeats = {}
    for cell in found:
        repeats.setdefault(tuple(cell.point.items()), []).append(cell.repeat)
    assert len(repeats) == 8 and all(
        r == repeats[*first.point.items(),] for r in repeats.values()
    )
    own = Config().replaced({"data.validation_limit": 7})
    assert not cells(sizes=(50,), config=own)[0].implied


def test_where_no_prefix_is_trained_its_settings_make_no_cells():
    grid = {"prefix.length": (1, 10), "train.method": ("prefix", "full")}
    assert [dict(cell.point) for cell in cells(grid)] == [
        {"prefix.length": 1, "train.method": "prefix"},
        {"train.method": "full"},
        {"prefix.length": 10, "train.method": "prefix"},
    ]


@pytest.mark.parametrize(
    ("grid", "rate"),
    [
        ({"train.method": "prefix", "prefix.length": 3}, 0.2),
        ({"prefix.kind": "embedding"}, 0.1),
        ({"prefix.kind": "mlp"}, 1e-3),
        ({"train.method": "full"}, 1e-3),
        ({"train.method": "top2", "optim.learning_rate": 0.3}, 0.3),
    ],
)
def test_a_rate_is_of_the_recipes_own_method_and_kind(grid, rate):
    config = Config(optim=OptimConfig(learning_rate=0.2))
    [cell] = cells({field: (value,) for field, value in grid.items()}, config=config)
    assert config.replaced(cell.overrides).resolved().optim.learning_rate == rate


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("prefix.length", "3", 3),
        ("prefix.nested", "1 2", (1, 2)),
        ("prefix.gate", "True", True),
        ("prefix.gate", "False", False),
        ("data.path", "my data/a, b='c'", "my data/a, b='c'"),
        ("optim.clip_norm", "None", None),
        ("optim.learning_rate", "5e-5", 5e-5),
        ("train.method", "full", "full"),
    ],
)
def test_a_value_and_the_options_of_its_cell_mean_the_same(field, text, value):
    """As typed after --grid, as a cell's option of `train`, and in a folder's name."""
    found = parse_value(field, FIELDS[field], text, "prefix-jax")
    assert found == value and type(found) is type(value)
    cell = Cell({field: value}, {}, {})
    assert "/" not in cell.name and " " not in cell.name
    section, name = field.split(".")
    config = Config().replaced({"prefix.position_mode": "unshifted"})
    options = parse(Config, options_of(cell.overrides), "prefix-jax", config)
    assert getattr(getattr(options, section), name) == value


def test_names_are_as_many_as_values():
    values = [("a+b",), ("a", "b"), ("a b",), ("a,b",), ("a%20b",), ()]
    assert len({Cell({"x": value}, {}, {}).name for value in values}) == len(values)


def test_a_grid_of_score_loss(config):
    """Some of its points have no loss on the split: their places stay empty."""
    found = make_cells(config, {"score.loss": (False, True)}, (), None, ())
    numbers = (
        {"validation_loss": 1.0, "bleu": 30.0},
        {"validation_loss": 1.0, "loss": 2.0},
    )
    numbers[1]["bleu"] = 31.0
    points = summarise([(c, Result(n)) for c, n in zip(found, numbers, strict=True)])
    console = Console(file=io.StringIO(), width=100)
    print_summary(points, "test", console)
    text = console.file.getvalue()
    assert "30.00" in text and "31.00" in text and "2.000" in text


def results(*losses):
    """Of cells with these validation losses; those of 99 failed."""
    return [
        Result({}, failed="no")
        if loss == 99
        else Result({"validation_loss": loss, "loss": loss + 1, "bleu": 10 * loss})
        for loss in map(float, losses)
    ]


def test_points_have_numpys_mean_and_deviation_and_one_of_them_is_chosen():
    found = cells({"prefix.length": (1, 2, 3)}, (5, 9), seeds=(1, 2))
    losses = [3, 4, 5, 6, 2, 3, 7, 8, 1, 99, 99, 99]
    points = summarise(list(zip(found, results(*losses), strict=True)))
    assert [dict(p.values) for p in points] == [dict(c.point) for c in found[::2]]
    for point, pair in zip(points, np.reshape(losses, (-1, 2)), strict=True):
        done = pair[pair < 99]
        assert (point.n, point.failed) == (len(done), 2 - len(done))
        if point.n:
            assert point.mean["validation_loss"] == np.mean(done)
            assert point.mean["bleu"] == np.mean(10 * done)
        expected = np.std(done, ddof=1) if point.n == 2 else None
        assert not point.n or point.std["loss"] == expected
    # Length 2 for size 5, where length 3 has a failure; length 1 for size 9.
    chosen = [tuple(p.values.values()) for p in points if p.chosen]
    assert chosen == [(1, 9), (2, 5)]
    console = quiet()
    print_summary(points, "test", console)
    shown = " ".join(console.file.getvalue().split())
    assert "test split, best checkpoint by validation loss" in shown
    assert "3.500 ± 0.707" in shown.replace("\N{NO-BREAK SPACE}", " ")
    assert "1 of 2" in shown and "failed" in shown


def test_a_table_that_is_too_wide_leaves_out_scores_and_says_so():
    found = cells({"train.method": ("prefix", "full")}, (50, 100))
    numbers = dict.fromkeys(("validation_loss", "loss", *get_args(TextMetric)), 1.0)
    points = summarise([(cell, Result(numbers)) for cell in found])
    for width, whole in ((80, False), (200, True)):
        console = Console(file=io.StringIO(), width=width)
        print_summary(points, "test", console)
        shown = console.file.getvalue()
        assert ("in sweep.json" in shown) != whole
        head = shown.split("50")[0]
        assert ("METEOR" in head) == whole and "BLEU" in head
        assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(
    ("grid", "drawn"),
    [
        ({"prefix.length": (1, 10)}, True),
        ({"prefix.length": (1, 10), "train.method": ("prefix", "full")}, True),
        ({"prefix.kind": ("flat", "mlp")}, False),
        ({"prefix.gate": (True, False)}, False),
    ],
)
def test_a_numeric_field_is_drawn(grid, drawn, tmp_path):
    found = cells(grid)
    points = summarise(list(zip(found, results(*range(len(found))), strict=True)))
    assert (plot_summary(points, "test", tmp_path / "x.png") is not None) == drawn
    assert (tmp_path / "x.png").exists() == drawn


def test_a_dry_run_prints_cells_and_their_number(tmp_path, capsys):
    path = recipe(tmp_path / "recipe.py", Config())
    grid = [
        "--grid",
        "prefix.length",
        "1",
        "10",
        "--grid",
        "prefix.kind",
        "flat",
        "mlp",
    ]
    repeats = ["--sizes", "50", "--subsamples", "2", "--seeds", "1", "2", "3"]
    assert run_cli("sweep", path, *grid, *repeats, "--dry-run") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 and last == "24 cells"
    assert lines[0].startswith(f"prefix-jax train {path} --prefix.length 1")


def test_a_dry_run_prints_the_whole_command_of_a_cell(tmp_path, capsys):
    """The recipe, what the sweep changed in it, the cell's own, and its folder."""
    path = recipe(tmp_path / "recipe.py", Config())
    words = ["--data.separator", "\n", "--train.tensorboard", "--train.steps", "7"]
    words += ["--workdir", str(tmp_path / "a sweep")]
    assert run_cli("sweep", path, *words, "--seeds", "3", "4", "--dry-run") == 0
    command = capsys.readouterr().out.rpartition("2 cells")[0]
    found = shlex.split(command)
    program, name, *found = found[: len(found) // 2]
    assert (program, name) == ("prefix-jax", "train")
    options = with_recipe(Train, "train", found)
    asked = {"data.separator": "\n", "train.tensorboard": True, "train.steps": 7}
    assert config_of(options) == Config().replaced({**asked, "train.seed": 3})
    assert options.workdir == tmp_path / "a sweep" / "train.seed=3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "nothing to sweep over"),
        ("--grid", "expected a field and its values"),
        ("--grid prefix.length", "expected a field and its values"),
        ("--grid prefix.lenght 1 2", 'did you mean "prefix.length"'),
        ("--grid prefix.length 1 x", '--prefix.length is "x"; expected a whole number'),
        ("--grid prefix.length 1 0", "prefix.length is 0; expected a whole number"),
        ("--grid prefix.length 1 1", "prefix.length has a value twice"),
        ("--grid prefix.kind flt", 'did you mean "flat"'),
        ("--grid prefix.length 1 2 --train.method full", "changes nothing where train"),
        ("--grid data.limit 1 2 --sizes 3", "sizes and a grid of data.limit are the"),
        ("--sizes 0", "sizes[0] is 0; expected"),
        ("--sizes 50 --subsamples 0", "subsamples is 0; expected"),
        ("--seeds 1 1", "train.seed has a value twice: 1 1"),
        ("--subsamples 2", "all subsamples would be the whole training split"),
        ("--seeds 1 --limit 0", "limit is 0; expected"),
        ("--seed 1", 'did you mean "--seeds"'),
    ],
)
def test_axes_that_cannot_be_are_explained(options, message, tmp_path, capsys):
    path = recipe(tmp_path / "recipe.py", Config())
    assert run_cli("sweep", path, *options.split()) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_in_python_a_field_that_is_none_is_named():
    with pytest.raises(InputError, match=r"no train.sede; did you mean"):
        cells({"train.sede": (1,)})
    with pytest.raises(InputError, match=r"grid of train.seed has no values"):
        cells({"train.seed": ()})
