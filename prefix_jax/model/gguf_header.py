"""The header of a GGUF file, read in a time and memory bounded by the file's size.

Messages leave out the file's path, which its readers put before them (`naming_file`).
"""

import contextlib
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefix_jax.errors import InputError, shown

_FORMS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?QqD", strict=True))
"""`struct`'s letter for a number, by GGUF's number of its type (D stands for d)."""
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 16
"""Bytes of a text that is kept; longer ones, of tokenizers, are not asked for here."""


class Tensor(NamedTuple):
    """Where a tensor lies in a file, and how."""

    shape: tuple[int, ...]
    kind: int
    start: int
    """From the first byte of all tensors."""


class Header(NamedTuple):
    """What a file says of itself."""

    values: dict[str, Any]
    """All but lists that were not asked for."""
    lists: frozenset[str]
    """Names of those that were not."""
    tensors: dict[str, Tensor]
    start: int
    """The first byte of the tensors."""


def read_header(path: Path, keep: Collection[str] = ()) -> Header:
    """What a file says of itself, in a time and memory bounded by its size.

    Of its lists those called as in `keep`.

    Raises InputError where its counts and lengths are not what its bytes can hold,
    which readers may believe, and count to 2^64.
    """
    size = path.stat().st_size
    with path.open("rb") as file:

        def read(form: str) -> Any:
            form = f"<{form.lower() if form == 'D' else form}"
            data = file.read(struct.calcsize(form))
            if len(data) < struct.calcsize(form):
                raise InputError(damaged("it ends in the middle"))
            return struct.unpack(form, data)[0]

        def skip(number: int) -> None:
            if number > size - file.tell():
                raise InputError(
                    damaged(f"it promises {number:,} more bytes than are there")
                )
            file.seek(number, 1)

        def text() -> str | None:
            length = read("Q")
            if length > min(_LONGEST, size - file.tell()):
                return skip(length)
            return file.read(length).decode("utf-8", "replace")

        def value(kind: int) -> Any:
            if kind == _STRING:
                return text()
            if kind in _FORMS:
                return read(_FORMS[kind])
            raise InputError(damaged(f"it has a value of type {kind}"))

        def skip_list(kept: bool) -> list | None:
            kind, number = read("I"), read("Q")
            if kept and number <= size:
                return [value(kind) for _ in range(number)]
            if kind in _FORMS:
                return skip(number * struct.calcsize(_FORMS[kind].replace("D", "d")))
            if number > size or kind != _STRING:
                raise InputError(damaged(f"it has a list of {number:,} of type {kind}"))
            for _ in range(number):
                skip(read("Q"))
            return None

        if file.read(4) != b"GGUF":
            raise InputError("not a GGUF file; it does not begin with GGUF")
        version = read("I")
        if version in (2 << 24, 3 << 24):
            raise InputError(
                "a GGUF file for big-endian machines; expected a little-endian one, "
                "which gguf_convert_endian.py of llama.cpp makes of it"
            )
        if version not in (2, 3):
            raise InputError(f"GGUF of version {version}; expected 2 or 3")
        tensor_count, value_count = read("Q"), read("Q")
        values: dict[str, Any] = {}
        lists: set[str] = set()
        for _ in range(value_count):  # ends at the file's end at the latest
            name, kind = text(), read("I")
            if name is None:
                raise InputError(damaged(f"a name is longer than {_LONGEST:,} bytes"))
            if name in values or name in lists:
                raise InputError(damaged(f"it says {shown(name)} twice"))
            if kind != _ARRAY:
                values[name] = value(kind)
            elif (found := skip_list(kept=name in keep)) is not None:
                values[name] = found
            else:
                lists.add(name)
        tensors: dict[str, Tensor] = {}
        for _ in range(tensor_count):
            name, dimensions = text() or "", read("I")
            if dimensions > 4 or name in tensors:
                raise InputError(
                    damaged(f"tensor {shown(name)} has {dimensions} dimensions")
                    if dimensions > 4
                    else damaged(f"tensor {shown(name)} is there twice")
                )
            shape = tuple(read("Q") for _ in range(dimensions))
            if 0 in shape:
                raise InputError(damaged(f"tensor {shown(name)} has no numbers"))
            tensors[name] = Tensor(shape[::-1], read("I"), read("Q"))
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise InputError(damaged(f"its alignment is {shown(alignment)}"))
        start = -(-file.tell() // alignment) * alignment
        return Header(values, frozenset(lists), tensors, start)


def damaged(what: str) -> str:
    """The message for a file that is not whole."""
    return f"not a whole GGUF file ({what}); copy or download it again"


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Puts a file's path before the messages of InputErrors from within."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
