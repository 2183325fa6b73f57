"""Many runs of one recipe: a grid of settings, data sizes, subsamples and seeds.

workdir/
  FIELD=VALUE,...   the run of each cell, as `train` leaves it, and its cell.json
  sweep.json        every cell's numbers, and the mean and spread of every point
  sweep.png         the first score by data size, or by the first numeric field
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from prefix_jax.config import Config
from prefix_jax.data_config import Split
from prefix_jax.errors import InputError, shown
from prefix_jax.model.tensor_files import read_json
from prefix_jax.runs.evaluate import check_limit
from prefix_jax.runs.grid import Cell, make_cells
from prefix_jax.runs.prepare import Setup, prepare
from prefix_jax.runs.record import check_folder
from prefix_jax.runs.summary import (
    Point,
    Result,
    plot_summary,
    print_summary,
    summarise,
)
from prefix_jax.runs.trial import run_trial
from prefix_jax.scoring.metrics import metrics_of
from prefix_jax.storage.files import write_json

_FAILURES = (InputError, OSError, MemoryError, jax.errors.JaxRuntimeError)
"""Of one cell alone; any other is a mistake of ours."""


def sweep(
    config: Config,
    workdir: Path,
    *,
    grid: Mapping[str, Sequence[object]] | None = None,
    sizes: Sequence[int] = (),
    subsamples: int | None = None,
    seeds: Sequence[int] = (),
    split: Split = "test",
    limit: int | None = None,
    console: Console | None = None,
) -> list[Point] | None:
    """Train and score `config` at every point of a grid, with mean and spread.

    grid: values by field, `{"prefix.length": (1, 10), "train.method": ("prefix",
        "full")}`. Where no prefix is trained, a prefix's settings are left out. Another
        method or kind of prefix than the recipe's learns at its default rate, unless
        the grid has `optim.learning_rate`.
    sizes: training examples (`data.limit`), with dev sets of 30 % of them unless
        `data.validation_limit` is set: the low-data protocol of Li & Liang.
    subsamples: so many seeded subsamples of each size (`data.subsample_seed` from 1),
        the same for all points.
    seeds: `train.seed` of the repeats; (): the recipe's.
    limit: score the first so many sources only.

    Each cell is scored on `split` with its best checkpoint by validation loss. The same
    call again skips what is done and goes on with the rest; a cell that fails costs no
    other. None if it was interrupted. Raises InputError for axes that cannot be.
    """
    console = console or Console()
    cells = plan(config, grid or {}, sizes, subsamples, seeds, limit=limit)
    check_folder(workdir)
    _check_recipe(workdir, config)
    loaded = prepare(config)
    results: list[tuple[Cell, Result]] = []
    for number, cell in enumerate(cells, 1):
        console.rule(f"{number} of {len(cells)}: {cell.name}")
        result = _run(
            loaded.of, config, cell, workdir / cell.name, split, limit, console
        )
        if result is None:
            console.print(
                f"{number - 1} of {len(cells)} cells are done; "
                "run the same command again to go on",
                highlight=False,
            )
            return None
        results.append((cell, result))
        _write(workdir, config, split, limit, len(cells), results)
    points = summarise(results)
    print_summary(points, split, console)
    for cell, result in results:
        if result.failed:
            console.print(
                f"{cell.name} failed: {result.failed}", highlight=False, markup=False
            )
    if picture := plot_summary(points, split, workdir / "sweep.png"):
        console.print(f"picture: {picture}", highlight=False)
    return points


def plan(
    config: Config,
    grid: Mapping[str, Sequence[object]],
    sizes: Sequence[int],
    subsamples: int | None,
    seeds: Sequence[int],
    *,
    limit: int | None,
) -> list[Cell]:
    """The cells of a sweep with these arguments; raises InputError as `sweep`."""
    check_limit(limit)
    metrics_of(config.data.task, config.score.metrics)
    return make_cells(config, grid, sizes, subsamples, seeds)


def _run(
    setup_of: Callable[[Config], Setup],
    config: Config,
    cell: Cell,
    folder: Path,
    split: Split,
    limit: int | None,
    console: Console,
) -> Result | None:
    """What the cell found, now or earlier; None if it was interrupted."""
    try:
        setup = setup_of(config.replaced(cell.overrides))
        _check_size(setup)
        terms = _terms(setup, split, limit)
        if (earlier := _earlier(folder, terms)) is not None:
            console.print("done already", highlight=False)
            return earlier
        trial = run_trial(setup, folder, split, limit, console)
        if trial is None:
            return None
        outcome, scores = trial.outcome, trial.scores
        result = Result(
            numbers={
                "validation_loss": outcome.best.loss,
                **({"loss": scores.loss} if scores.has_loss else {}),
                **scores.scores,
            },
            step=outcome.best.step,
            trained=outcome.trained,
            seconds=round(outcome.seconds, 1),
            scoring_seconds=round(trial.scoring_seconds, 1),
        )
        write_json(
            folder / "cell.json", {**terms, "result": dataclasses.asdict(result)}
        )
        return result
    except _FAILURES as error:
        console.print(f"failed: {error}", highlight=False, markup=False)
        return Result({}, failed=str(error))


def _check_size(setup: Setup) -> None:
    """InputError where a subsample would be the whole split, under another name."""
    data, train = setup.config.data, setup.rows("train")
    there = len(train.examples or train.rows)
    if data.limit and there < data.limit and data.overflow != "drop":
        raise InputError(
            f"data.limit is {data.limit}, but the training split has {there}; give "
            "smaller --sizes"
        )


def _terms(setup: Setup, split: Split, limit: int | None) -> dict[str, object]:
    """All that a cell's result depends on."""
    used: tuple[Split, ...] = ("train", "validation", split)
    return {
        "config": setup.config.to_dict(),
        "backbone": setup.fingerprint,
        "rows": {name: setup.rows(name).fingerprint for name in used},
        "split": split,
        "limit": limit,
    }


def _earlier(folder: Path, terms: Mapping[str, object]) -> Result | None:
    """What an earlier call found for the same cell, where there was one."""
    path = folder / "cell.json"
    if not path.exists():
        return None
    found = read_json(path)
    result = found.pop("result", None)
    if isinstance(found.get("config"), dict):
        found["config"] = _completed(found["config"])
    if not isinstance(result, dict) or found != json.loads(
        json.dumps(terms)
    ):  # JSON has no tuples
        return None
    numbers = {  # null stands for what is not finite
        name: math.nan if value is None else value
        for name, value in result.pop("numbers").items()
    }
    return Result(numbers, **result)


def _check_recipe(workdir: Path, config: Config) -> None:
    """InputError where the folder holds the sweep of another recipe."""
    path = workdir / "sweep.json"
    there = read_json(path).get("recipe") if path.exists() else None
    here = json.loads(json.dumps(config.to_dict()))  # JSON has no tuples
    if not isinstance(there, dict):
        return
    there = _completed(there)
    if there == here:
        return
    differing = [
        f"{section}.{name}: {shown(fields.get(name))} there, {shown(value)} here"
        for section, values in here.items()
        for name, value in values.items()
        if isinstance(fields := there.get(section, {}), dict)
        and fields.get(name) != value
    ]
    raise InputError(
        f"{workdir} holds the sweep of another recipe ({'; '.join(differing[:4])}); "
        "give another --workdir, or the same recipe"
    )


def _completed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version did not write of a recipe is what it did: the default."""
    usual = json.loads(json.dumps(Config().to_dict()))  # JSON has no tuples
    found = dict(recipe)
    for section, values in usual.items():
        given = recipe.get(section, {})
        found[section] = {**values, **given} if isinstance(given, dict) else given
    return found


def _write(
    workdir: Path,
    config: Config,
    split: Split,
    limit: int | None,
    planned: int,
    results: Sequence[tuple[Cell, Result]],
) -> None:
    record = {
        "recipe": config.to_dict(),
        "split": split,
        "limit": limit,
        "planned": planned,
        "points": [dataclasses.asdict(point) for point in summarise(results)],
        "cells": [
            {
                "folder": cell.name,
                "overrides": cell.overrides,
                **dataclasses.asdict(result),
            }
            for cell, result in results
        ],
    }
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "sweep.json", record)
