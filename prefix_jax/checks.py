"""Checks of a dataclass's fields against their own type hints."""

import dataclasses
import functools
import math
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from prefix_jax.errors import InputError, closest, shortened


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Which numbers a field takes: `Annotated[int, Bounds(least=1)]`."""

    least: int | float = -math.inf
    above: int | float = -math.inf
    below: int | float = math.inf
    most: int | float = math.inf

    def hold(self, value: int | float) -> bool:
        """Whether a number is within them."""
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least:,} to {self.most:,}"
        limits = (
            (">=", self.least),
            (">", self.above),
            ("<", self.below),
            ("<=", self.most),
        )
        return " and ".join(
            f"{sign} {limit:,}" for sign, limit in limits if math.isfinite(limit)
        )


_COUNTER = 2**31 - 1
"""The largest i32, which steps and tokens are counted in on the devices."""

Positive = Annotated[int, Bounds(least=1, most=_COUNTER)]
NotNegative = Annotated[int, Bounds(least=0, most=_COUNTER)]
Size = Annotated[int, Bounds(least=1, most=1_000_000)]
"""A side of an array: above it memory runs out on any machine."""
Seed = Annotated[int, Bounds(least=0, most=2**32 - 1)]
"""Of jax, numpy and Grain alike."""
Share = Annotated[float, Bounds(least=0, below=1)]
Above = Annotated[float, Bounds(above=0)]
Chance = Annotated[float, Bounds(above=0, most=1)]


class Section:
    """A dataclass whose fields are checked as it is made; InputError names the field.

    Type hints are Literals, plain types, tuples of one type (`tuple[int, ...]`), each
    with Bounds if it is `Annotated` and with `| None` if it is optional. A float takes
    whole numbers too, but neither NaN nor infinity. `PrefixConfig` is called `prefix`.
    """

    def __post_init__(self):
        section = type(self).__name__.removesuffix("Config").lower()
        for name, hint in hints(type(self)).items():
            check(f"{section}.{name}", getattr(self, name), hint)


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The type hint of each field, with its bounds."""
    return get_type_hints(kind, include_extras=True)


def check(name: str, value: object, hint: Any) -> None:
    """InputError, with its `name`, for a value that a type hint does not take."""
    given, bounds, optional = _parts(hint)
    if optional and value is None:
        return
    if get_origin(given) is tuple and isinstance(value, tuple):
        for number, member in enumerate(value):
            check(f"{name}[{number}]", member, get_args(given)[0])
    elif not _fits(value, given, bounds):
        raise InputError(
            f"{name} is {_show(value)}; expected {describe(hint)}"
            f"{closest(str(value), choices(given))}"
        )


def describe(hint: Any) -> str:
    """What a type hint takes, in words: `a whole number >= 1, or None`."""
    given, bounds, optional = _parts(hint)
    limits = f" {bounds}" if str(bounds) else ""
    return _describe(given) + limits + (", or None" if optional else "")


def choices(hint: Any) -> tuple[Any, ...]:
    """The closed list of values that a hint, or a member of its tuple, has; or ()."""
    given, *_ = _parts(hint)
    if get_origin(given) is tuple:
        return choices(get_args(given)[0])
    return get_args(given) if get_origin(given) is Literal else ()


def is_tuple(hint: Any) -> bool:
    """Whether a type hint takes several values."""
    return get_origin(_parts(hint)[0]) is tuple


def words(value: object) -> list[str]:
    """A value as the words that follow its option on a command line."""
    return [*map(str, value)] if isinstance(value, list | tuple) else [str(value)]


def _parts(hint: Any) -> tuple[Any, Bounds, bool]:
    """(type, bounds, whether None is taken) of `Annotated[...] | None`."""
    bounds, optional = Bounds(), False
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
        optional = True
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
        bounds = next((mark for mark in marks if isinstance(mark, Bounds)), bounds)
    return hint, bounds, optional


def _fits(value: object, hint: Any, bounds: Bounds) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint not in (int, float):
        return isinstance(value, get_origin(hint) or hint)
    # bool is a kind of int, and isfinite needs a number.
    kinds = int if hint is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    # A whole number may be too large to be a float at all; comparing is exact.
    within = abs(value) <= sys.float_info.max  # neither infinite nor NaN
    return (hint is int or within) and bounds.hold(value)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        choices = [_show(choice) for choice in get_args(hint)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if get_origin(hint) is tuple:
        return f"a tuple, of {describe(get_args(hint)[0])} each"
    names = {
        int: "a whole number",
        float: "a finite number",
        str: "text",
        bool: "True or False",
        Path: "a path",
    }
    return names[hint]


def _show(value: object) -> str:
    return shortened(f'"{value}"' if isinstance(value, str) else repr(value))
