"""What a sweep found: means and spreads of its points, as a table and a picture."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from prefix_jax.checks import words
from prefix_jax.data_config import Split
from prefix_jax.runs.grid import Cell, Values
from prefix_jax.scoring.metrics import NAMES, show_value
from prefix_jax.storage.pictures import Point as Mark
from prefix_jax.storage.pictures import plot_points

LOSSES = "validation_loss", "loss"
"""Of a result's numbers, those that are no scores."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a cell ended."""

    numbers: Mapping[str, float]
    """`validation_loss`, `loss` on the split scored (if measured: `score.loss`), the
    task's scores; {}: failed."""
    step: int = 0
    """Of the checkpoint that is scored: the best on the validation split."""
    trained: int = 0
    """Numbers trained."""
    seconds: float = 0.0
    """Of training and its validations, over all calls that it took."""
    scoring_seconds: float = 0.0
    failed: str | None = None
    """Why there are no numbers."""


@dataclasses.dataclass(frozen=True)
class Point:
    """All cells that differ in subsample and seed only."""

    values: Values
    n: int
    """Cells that means and deviations are of."""
    failed: int
    mean: Mapping[str, float]
    std: Mapping[str, float | None]
    """Sample standard deviation; None where n is 1."""
    chosen: bool
    """Of the points with its method and data size, it has the lowest mean validation
    loss; False where one of its cells failed, or there is no other."""


def summarise(cells: Sequence[tuple[Cell, Result]]) -> list[Point]:
    """The points of a sweep, in its order."""
    groups: dict[tuple, list[Result]] = {}
    for cell, result in cells:
        groups.setdefault(tuple(cell.point.items()), []).append(result)
    points = [_point(dict(values), results) for values, results in groups.items()]
    rivals: dict[tuple, list[Point]] = {}
    for point in points:
        key = point.values.get("train.method"), point.values.get("data.limit")
        rivals.setdefault(key, []).append(point)
    best = [
        min(
            (point for point in group if not point.failed),
            key=lambda point: _sortable(point.mean["validation_loss"]),
            default=None,
        )
        for group in rivals.values()
        if len(group) > 1
    ]
    return [
        dataclasses.replace(point, chosen=any(point is one for one in best))
        for point in points
    ]


def _point(values: Values, results: Sequence[Result]) -> Point:
    done = [result.numbers for result in results if result.failed is None]
    columns = {
        name: [numbers[name] for numbers in done] for name in (done[0] if done else ())
    }
    return Point(
        values=values,
        n=len(done),
        failed=len(results) - len(done),
        mean={name: float(np.mean(column)) for name, column in columns.items()},
        std={
            name: float(np.std(column, ddof=1)) if len(column) > 1 else None
            for name, column in columns.items()
        },
        chosen=False,
    )


def print_summary(points: Sequence[Point], split: Split, console: Console) -> None:
    """A table with a row for each point, and as many scores as find room."""
    # A number that only some have: the loss, in a grid of `score.loss`.
    names = list(dict.fromkeys(name for point in points for name in point.mean))
    names.sort(key=lambda name: LOSSES.index(name) if name in LOSSES else len(LOSSES))
    # Rich would break words to make room; so deviations go below their means, and then
    # the last scores go.
    roomy = console.options.update(width=10_000)

    def too_wide(table: Table) -> bool:
        return console.measure(table, options=roomy).maximum > console.width

    shown, table = len(names), _table(points, split, names, " ")
    if too_wide(table):
        table = _table(points, split, names, "\n")
    while shown > 2 and too_wide(table):
        shown -= 1
        table = _table(points, split, names[:shown], "\n")
    if left := [NAMES[name] for name in names[shown:]]:
        assert isinstance(table.caption, str)
        table.caption += f"; {', '.join(left)}: in sweep.json"
    console.print(table)


def _table(
    points: Sequence[Point], split: Split, names: Sequence[str], gap: str
) -> Table:
    fields = _fields(points)
    table = Table(title=f"{split} split, best checkpoint by validation loss")
    for field in fields:
        table.add_column(field.replace(".", ".\n"))
    table.add_column("n", justify="right")
    for name in names:
        title = _title(name, split).replace(" ", "\n")
        table.add_column(title, justify="right", no_wrap=True)
    for point in points:
        table.add_row(
            *(_text(point.values[f]) if f in point.values else "" for f in fields),
            f"{point.n} of {point.n + point.failed}" if point.failed else f"{point.n}",
            *(_spread(name, point, gap) if point.n else "failed" for name in names),
            style="bold" if point.chosen else None,
        )
    table.caption = "mean ± sample standard deviation of n runs"
    if any(point.chosen for point in points):
        table.caption += "; bold: lowest validation loss of its method and data size"
    return table


def plot_summary(points: Sequence[Point], split: Split, path: Path) -> Path | None:
    """The first score (or the loss) over data size, or over the first numeric field.

    None if no field has two numbers.
    """
    done = [point for point in points if point.n]
    x = next((field for field in _fields(done) if _numeric(field, done)), None)
    if x is None:
        return None
    name = next((name for name in done[0].mean if name not in LOSSES), "loss")
    lines: dict[str, list[Mark]] = {}
    for point in done:
        others = [_text(v) for field, v in point.values.items() if field != x]
        value = point.values.get(x)
        mark = Mark(
            float(value) if isinstance(value, int | float) else None,
            point.mean[name],
            point.std[name] or 0.0,
        )
        lines.setdefault(", ".join(others), []).append(mark)
    label = name if name == "loss" else _title(name, split)
    title = f"{label}, {split} split (mean ± standard deviation)"
    return plot_points(lines, path, x_label=x, y_label=title)


def _fields(points: Sequence[Point]) -> list[str]:
    """Data size first, then in the order of the grid."""
    fields = dict.fromkeys(field for point in points for field in point.values)
    return sorted(fields, key=lambda field: field != "data.limit")


def _numeric(field: str, points: Sequence[Point]) -> bool:
    values = {point.values[field] for point in points if field in point.values}
    numbers = [
        v for v in values if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    return len(numbers) == len(values) > 1


def _title(name: str, split: Split) -> str:
    own = {"validation_loss": "val. loss", "loss": f"{split} loss"}
    return own[name] if name in own else NAMES[name]


def _spread(name: str, point: Point, gap: str) -> str:
    if name not in point.mean:
        return ""
    mean, std = show_value(name, point.mean[name]), point.std[name]
    if std is None:
        return mean
    return f"{mean}{gap}± {show_value(name, std)}"


def _text(value: object) -> str:
    return " ".join(words(value))


def _sortable(value: float) -> float:
    return value if np.isfinite(value) else np.inf
