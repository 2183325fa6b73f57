"""The command `sweep`, which takes a recipe and axes."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from prefix_jax.checks import Positive, Seed
from prefix_jax.cli_options import config_of, options_of, parse_value, with_recipe
from prefix_jax.config import FIELDS, Config
from prefix_jax.distributed import check_alone
from prefix_jax.errors import InputError, closest
from prefix_jax.recipe import load_recipe
from prefix_jax.runs.interrupt import stopped_status


@dataclasses.dataclass(frozen=True)
class Sweep(Config):
    """Train and score a recipe over a grid of settings; tabulate mean and spread.

    The same command again goes on where it stopped. For example, what the paper does
    with little data:

    prefix-jax sweep configs/e2e_tiny.py --data.path DIR --sizes 50 100 200 500
    --subsamples 5 --seeds 101 102 --grid train.method prefix full --train.patience 3
    """

    workdir: Path = Path("runs/sweep")
    """Folder with one run for each cell, sweep.json and sweep.png."""
    grid: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """FIELD VALUE ...: any setting of a recipe, such as prefix.length 1 10 20; several
    of them are combined. Methods and kinds of prefix that are not the recipe's learn at
    their default rate, unless optim.learning_rate is in the grid."""
    sizes: tuple[Positive, ...] = ()
    """Training examples (data.limit), each with a dev set of 30 % as many unless
    data.validation_limit is set."""
    subsamples: Positive | None = None
    """Average over so many subsamples of the training split, the same at all points."""
    seeds: tuple[Seed, ...] = ()
    """Average over these (train.seed)."""
    split: Literal["validation", "test"] = "test"
    """What is scored, with the best checkpoint by validation loss."""
    limit: int | None = None
    """Score the first so many sources only, each with all of its references."""
    dry_run: bool = False
    """Only print the command that trains each cell for itself, and their number."""


def sweep(arguments: list[str]) -> int:
    options = with_recipe(Sweep, "sweep", arguments)
    grid = _grid(options.grid)
    check_alone("sweep")
    from prefix_jax.runs.sweep import plan, sweep

    config, limit = config_of(options), options.limit
    axes = grid, options.sizes, options.subsamples, options.seeds
    if options.dry_run:
        cells = plan(config, *axes, limit=limit)
        recipe = arguments[0]
        changed = _changed(load_recipe(Path(recipe)), config)
        for cell in cells:
            own = options_of({**changed, **cell.overrides})
            own += ["--workdir", str(options.workdir / cell.name)]
            print(shlex.join(["prefix-jax", "train", recipe, *own]))
        print(f"{len(cells):,} cells")
        return 0
    points = sweep(
        config,
        options.workdir,
        grid=grid,
        sizes=options.sizes,
        subsamples=options.subsamples,
        seeds=options.seeds,
        split=options.split,
        limit=limit,
    )
    if points is None:
        return stopped_status()
    return 1 if any(point.failed for point in points) else 0


def _changed(recipe: Config, config: Config) -> dict[str, object]:
    """The values of `config` that options have changed in its recipe, by name."""
    own = recipe.to_dict()
    return {
        f"{section}.{name}": value
        for section, fields in config.to_dict().items()
        for name, value in fields.items()
        if value != own[section][name]
    }


def _grid(given: Sequence[Sequence[str]]) -> dict[str, list[object]]:
    """Typed values by field, of what followed each --grid."""
    grid: dict[str, list[object]] = {}
    for words in given:
        if len(words) < 2:
            raise InputError(
                f'--grid is "{" ".join(words)}"; expected a field and its values, '
                "such as --grid prefix.length 1 10 20"
            )
        given_name, *values = words
        field = given_name.replace("-", "_")
        if field not in FIELDS:
            raise InputError(
                f'--grid: a recipe has no "{given_name}"{closest(field, FIELDS)}'
            )
        for value in values:
            grid.setdefault(field, []).append(
                parse_value(field, FIELDS[field], value, "prefix-jax sweep --grid")
            )
    return grid
