"""Checks of a dataclass's fields against their own type hints."""

import dataclasses
import functools
import math
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from prefix_jax.errors import InputError, closest


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
        limits = (
            (">=", self.least),
            (">", self.above),
            ("<", self.below),
            ("<=", self.most),
        )
        return " and ".join(
            f"{sign} {limit:g}" for sign, limit in limits if math.isfinite(limit)
        )


Positive = Annotated[int, Bounds(least=1)]
NotNegative = Annotated[int, Bounds(least=0)]
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
        for name, hint in _hints(type(self)).items():
            _check(f"{section}.{name}", getattr(self, name), hint)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _check(name: str, value: object, hint: Any) -> None:
    optional = get_origin(hint) in (Union, UnionType)
    if optional:
        if value is None:
            return
        (hint,) = (option for option in get_args(hint) if option is not NoneType)
    hint, bounds = _without_bounds(hint)
    if get_origin(hint) is tuple and isinstance(value, tuple):
        for number, member in enumerate(value):
            _check(f"{name}[{number}]", member, get_args(hint)[0])
    elif not _fits(value, hint, bounds):
        expected = _describe(hint) + (f" {bounds}" if str(bounds) else "")
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        raise InputError(
            f"{name} is {_show(value)}; expected {expected}"
            f"{', or None' if optional else ''}{closest(str(value), choices)}"
        )


def _without_bounds(hint: Any) -> tuple[Any, Bounds]:
    if get_origin(hint) is not Annotated:
        return hint, Bounds()
    hint, bounds = get_args(hint)
    return hint, bounds


def _fits(value: object, hint: Any, bounds: Bounds) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint not in (int, float):
        return isinstance(value, get_origin(hint) or hint)
    # bool is a kind of int, and isfinite needs a number.
    kinds = int if hint is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return math.isfinite(value) and bounds.hold(value)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        choices = [_show(choice) for choice in get_args(hint)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if get_origin(hint) is tuple:
        member, _ = _without_bounds(get_args(hint)[0])
        return f"a tuple, of {_describe(member)} each"
    names = {
        int: "a whole number",
        float: "a finite number",
        str: "text",
        bool: "True or False",
    }
    return names[hint]


def _show(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
