"""JSON that others wrote, as Python's values, or one kind of error."""

import json
from collections.abc import Iterable
from typing import Any

MOST_NESTED = 100
"""Levels of lists and objects: what follows them by calling itself gets no further
than some hundreds."""

_DECODER = json.JSONDecoder()


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises json.JSONDecodeError, which knows the line, for anything else, for values
    nested too deeply and for numbers of thousands of digits.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _told(error, text) from None
    _check_depth(value, text)
    return value


def parse_part(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends; raises as `parse`."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _told(error, text, start) from None
    _check_depth(value, text, start, end)
    return value, end


def _told(error: Exception, text: str, start: int = 0) -> json.JSONDecodeError:
    if isinstance(error, json.JSONDecodeError):
        return error
    if isinstance(error, RecursionError):
        return _too_deep(text, start)
    return json.JSONDecodeError("A number of too many digits", text, start)


def _too_deep(text: str, start: int) -> json.JSONDecodeError:
    message = f"Lists or objects nested more than {MOST_NESTED} levels deep"
    return json.JSONDecodeError(message, text, start)


def _check_depth(
    value: object, text: str, start: int = 0, end: int | None = None
) -> None:
    # Rows hardly ever have so many brackets, and then need no second look.
    if text.count("[", start, end) + text.count("{", start, end) <= MOST_NESTED:
        return
    level = [value]
    for _ in range(MOST_NESTED):
        level = [inner for one in level for inner in _members(one)]
        if not level:
            return
    raise _too_deep(text, start)


def _members(value: object) -> Iterable[object]:
    """The lists and objects directly in a value."""
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    return (one for one in inner if isinstance(one, dict | list))
