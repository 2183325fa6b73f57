"""The one error type for what users hand to the library, and its help with typos."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used: says what was given, what was expected, what to do."""


def closest(given: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean "..."?` where one of `names` is close to `given`, else ``.

    `cutoff` is how close, from 0 to 1 (`difflib`'s ratio).
    """
    found = difflib.get_close_matches(given, list(names), n=1, cutoff=cutoff)
    return f'; did you mean "{found[0]}"?' if found else ""


def first_line(error: BaseException) -> str:
    """What an error says first; its type's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
