"""The one error type for what users hand to the library, and words for messages."""

import difflib
import json
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used: says what was given, what was expected, what to do."""


NEAR_NAME = 0.75
"""`cutoff` for names of files and folders, of which any two are somewhat alike."""


def closest(given: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean "..."?` where one of `names` is close to `given`, else ``.

    `cutoff` is how close, from 0 to 1 (`difflib`'s ratio).
    """
    found = difflib.get_close_matches(given, list(names), n=1, cutoff=cutoff)
    return f'; did you mean "{found[0]}"?' if found else ""


def json_kind(value: object) -> str:
    """What JSON calls a value that was read from it: `null`, `a number`, `a list`."""
    names = {
        bool: "a boolean",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def json_value(value: object) -> str:
    """A value as JSON writes it, shortened, and its kind: `5, a whole number`."""
    if value is None:
        return "null"
    written = json.dumps(value, ensure_ascii=False, default=repr)
    return f"{shortened(written, 60)}, {json_kind(value)}"


def shortened(text: str, most: int = 200) -> str:
    """The beginning of a text that a message quotes."""
    return text if len(text) <= most else f"{text[:most]}..."


def shown(value: object) -> str:
    """A value as Python writes it, shortened."""
    return shortened(repr(value))


def printable(text: str) -> str:
    """A message for a terminal: characters that would command it are written out.

    They can come from any file whose names or values the message quotes.
    """
    return "".join(
        one if one.isprintable() or one in " \n\t" else ascii(one)[1:-1] for one in text
    )


def first_line(error: BaseException) -> str:
    """What an error says first; its type's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def counted(number: int, noun: str) -> str:
    """`1 source`, `1,000 sources`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
