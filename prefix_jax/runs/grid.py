"""The cells of a sweep: every combination of values, repeated over data and seeds."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from prefix_jax.checks import Positive, Seed, check, words
from prefix_jax.config import FIELDS, Config
from prefix_jax.errors import InputError, closest

DEV_SHARE = 0.3
"""Size of a dev set, relative to the training set's (the paper's low-data protocol)."""

Values = Mapping[str, object]
"""Of a recipe's fields, by name: {"prefix.length": 10}."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    point: Values
    """What is compared."""
    repeat: Values
    """What is averaged over: the subsample and the seed."""
    implied: Values
    """What follows from the point."""

    @property
    def name(self) -> str:
        """Of its folder; no two points have the same."""
        return ",".join(
            f"{field}={'+'.join(quote(word, safe='') for word in words(value))}"
            for field, value in {**self.point, **self.repeat}.items()
        )

    @property
    def overrides(self) -> dict[str, object]:
        """The values that differ from the sweep's recipe."""
        return {**self.point, **self.implied, **self.repeat}


def make_cells(
    config: Config,
    grid: Mapping[str, Sequence[object]],
    sizes: Sequence[int],
    subsamples: int | None,
    seeds: Sequence[int],
) -> list[Cell]:
    """The cells of a sweep over `config`, as `sweep` describes its arguments.

    All repeats of a point follow each other. Raises InputError for a field or a value
    that a recipe cannot have, two axes of one field, and no axis at all.
    """
    check("sizes", tuple(sizes), tuple[Positive, ...])
    check("subsamples", subsamples, Positive | None)
    check("seeds", tuple(seeds), tuple[Seed, ...])
    axes = dict(grid)
    repeats: dict[str, Sequence[object]] = {}
    for axis, field, values, group in (
        ("sizes", "data.limit", sizes, axes),
        ("subsamples", "data.subsample_seed", range(1, (subsamples or 0) + 1), repeats),
        ("seeds", "train.seed", seeds, repeats),
    ):
        if values and field in grid:
            raise InputError(f"{axis} and a grid of {field} are the same; give one")
        if values:
            group[field] = values
    for field, values in {**axes, **repeats}.items():
        _check_axis(field, values)
    if not axes and not repeats:
        raise InputError(
            "there is nothing to sweep over; give --grid FIELD VALUE ..., --sizes, "
            "--subsamples or --seeds"
        )
    if subsamples and "data.limit" not in axes and config.data.limit is None:
        raise InputError(
            "all subsamples would be the whole training split; give --sizes, or "
            "--data.limit"
        )
    points = dict.fromkeys(
        tuple(_point(config, values).items()) for values in _product(axes)
    )
    if points == {(): None} and not repeats:
        raise InputError(
            f"{', '.join(axes)} changes nothing where train.method is "
            f'"{config.train.method}"'
        )
    return [
        Cell(dict(point), repeat, _implied(config, dict(point), bool(sizes)))
        for point in points
        for repeat in _product(repeats)
    ]


def _check_axis(field: str, values: Sequence[object]) -> None:
    if field not in FIELDS:
        raise InputError(f"a recipe has no {field}{closest(field, FIELDS)}")
    if not values:
        raise InputError(f"the grid of {field} has no values; give some")
    for value in values:
        check(field, value, FIELDS[field])
    if len({*values}) < len(values):
        raise InputError(f"{field} has a value twice: {' '.join(map(str, values))}")


def _product(axes: Mapping[str, Sequence[object]]) -> Iterator[dict[str, object]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _point(config: Config, values: Values) -> Values:
    """Without the settings of a prefix where none is trained."""
    if values.get("train.method", config.train.method) == "prefix":
        return values
    return {f: v for f, v in values.items() if not f.startswith("prefix.")}


def _implied(config: Config, point: Values, sizes: bool) -> Values:
    """A dev set in proportion, and a default rate where the recipe's is of others."""
    implied: dict[str, object] = {}
    size = point.get("data.limit")
    own = config.data.validation_limit or point.get("data.validation_limit")
    if sizes and own is None and isinstance(size, int):
        implied["data.validation_limit"] = max(round(DEV_SHARE * size), 1)

    def learner(values: Values) -> tuple[object, object]:
        method = values.get("train.method", config.train.method)
        kind = values.get("prefix.kind", config.prefix.kind)
        return method, kind if method == "prefix" else None

    if "optim.learning_rate" not in point and learner(point) != learner({}):
        implied["optim.learning_rate"] = None
    return implied
