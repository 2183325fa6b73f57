"""The header of a GGUF file, read in a time and memory bounded by the file's size."""

import struct
from collections.abc import Collection
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
                raise InputError(damaged(path, "it ends in the middle"))
            return struct.unpack(form, data)[0]

        def skip(number: int) -> None:
            if number > size - file.tell():
                raise InputError(
                    damaged(path, f"it promises {number:,} more bytes than it has")
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
            raise InputError(damaged(path, f"it has a value of type {kind}"))

        def skip_list(kept: bool) -> list | None:
            kind, number = read("I"), read("Q")
            if kept and number <= size:
                return [value(kind) for _ in range(number)]
            if kind in _FORMS:
                return skip(number * struct.calcsize(_FORMS[kind].replace("D", "d")))
            if number > size or kind != _STRING:
                raise InputError(
                    damaged(path, f"it has a list of {number:,} of type {kind}")
                )
            for _ in range(number):
                skip(read("Q"))
            return None

        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file; it does not begin with GGUF")
        version = read("I")
        if version not in (2, 3):
            raise InputError(f"{path} is GGUF of version {version}; expected 2 or 3")
        tensor_count, value_count = read("Q"), read("Q")
        values: dict[str, Any] = {}
        for _ in range(value_count):  # ends at the file's end at the latest
            name, kind = text(), read("I")
            if kind == _ARRAY:
                found = skip_list(kept=name in keep)
                if name is not None and found is not None:
                    values[name] = found
            elif name is not None:
                values[name] = value(kind)
        tensors: dict[str, Tensor] = {}
        for _ in range(tensor_count):
            name, dimensions = text() or "", read("I")
            if dimensions > 4 or name in tensors:
                raise InputError(
                    damaged(path, f"tensor {shown(name)} has {dimensions} dimensions")
                    if dimensions > 4
                    else damaged(path, f"tensor {shown(name)} is there twice")
                )
            shape = tuple(read("Q") for _ in range(dimensions))
            tensors[name] = Tensor(shape[::-1], read("I"), read("Q"))
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise InputError(damaged(path, f"its alignment is {shown(alignment)}"))
        return Header(values, tensors, -(-file.tell() // alignment) * alignment)


def damaged(path: Path, what: str) -> str:
    """The message for a file that is not whole."""
    return f"{path} is not a whole GGUF file ({what}); copy or download it again"
