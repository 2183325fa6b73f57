"""JSONL, CSV, TSV and text files, plain or gzipped; errors name the file and line."""

import csv
import functools
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prefix_jax.errors import NEAR_NAME, InputError, closest, json_kind
from prefix_jax.json_text import parse
from prefix_jax.model.loading import END

TABLE_ENDINGS = (".jsonl", ".csv", ".tsv")
TEXT_ENDINGS = (".txt", ".raw")  # WikiText's official files are `.raw`
ENDINGS = (*TABLE_ENDINGS, *TEXT_ENDINGS)
GZIP = ".gz"

LARGEST = 2**28
"""Bytes of the longest line, and of the largest file that is read at once. A gzip file
can hold a thousand times its own size."""


def listing(names: Iterable[str], most: int = 12) -> str:
    """The names in order, comma-separated, the rest as a number."""
    names = sorted(names)
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest


def ending(path: Path) -> str:
    """The ending that tells the format, without `.gz`: `train.csv.gz` gives `.csv`."""
    return Path(path.name.removesuffix(GZIP)).suffix


def find_file(folder: Path, name: str, endings: tuple[str, ...] = ENDINGS) -> Path:
    """The file called `name` in `folder`, where the ending may be left out.

    Raises InputError where there is no folder, no such file or more than one.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    path = folder / name
    if path.is_file():
        if ending(path) not in endings:
            raise InputError(
                f'{path}: cannot read "{ending(path) or "no ending"}" files here; '
                f"expected {', '.join(endings)}, each also with {GZIP}"
            )
        return path
    found = candidates(folder, name, endings)
    if len(found) > 1:
        raise InputError(
            f'{folder}: "{name}" can be {listing(f.name for f in found)}; '
            "give the name with its ending"
        )
    if not found:
        present = [entry.name for entry in folder.iterdir()]
        readable = sorted(p.name for p in folder.iterdir() if ending(p) in endings)
        stems = {entry.split(".")[0] for entry in readable}
        hint = closest(name, readable) or closest(name, stems)
        raise InputError(
            f'{folder} has no file "{name}" (with or without one of '
            f"{', '.join(endings)} and {GZIP}); it holds {listing(present)}{hint}"
            f"{_which_file(readable)}"
        )
    return found[0]


def candidates(folder: Path, name: str, endings: Iterable[str]) -> list[Path]:
    """The files that are called `name` and one of the endings, plain or gzipped."""
    paths = (folder / f"{name}{end}{zip_}" for end in endings for zip_ in ("", GZIP))
    return [path for path in paths if path.is_file()]


def _which_file(readable: Sequence[str]) -> str:
    """How to name another file, or a part of it, where there is one to read."""
    if not readable:
        return ""
    return (
        "; say what to read with --data.train, --data.validation and --data.test: a "
        f'file, or rows of it such as "{readable[0]}[:800]"'
    )


def no_folder(folder: Path) -> InputError:
    """For a `data.path` that is none: what there is instead, or near it."""
    if folder.exists():
        return InputError(
            f"data.path {folder} is a file; give the folder as data.path and the file "
            f'as a split: --data.path {folder.parent} --data.train "{folder.name}"'
        )
    parent = folder.parent
    siblings = (
        [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    )
    hint = closest(folder.name, siblings, cutoff=NEAR_NAME)
    return InputError(f"data.path {folder} does not exist{hint or '; give a folder'}")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines, their ends kept, of a UTF-8 file.

    Raises InputError on bytes that are not UTF-8, on damaged gzip files and on lines
    longer than `LARGEST`.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == GZIP else path.open("rb") as file:
            lines = iter(functools.partial(file.readline, LARGEST + 1), b"")
            for number, line in enumerate(lines, start=1):
                if len(line) > LARGEST:
                    raise InputError(
                        f"{path}, line {number}: longer than {LARGEST:,} bytes; put "
                        "each row or document in a line of its own"
                    )
                # Editors on Windows write a byte-order mark in front of the first line.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} "
            f"at position {error.start}); save the file as UTF-8"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: damaged gzip file after line {number} ({error}); copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Rows of a JSONL, CSV or TSV file as (place, {column: value}).

    The place, for messages, is such as `train.csv, line 3`, with the whole path. CSV
    is quoted as RFC 4180 says; TSV has no quoting. Raises InputError on a bad row.
    """
    match ending(path):
        case ".jsonl":
            yield from _read_jsonl(path)
        case ".csv":
            yield from _read_table(path, ",", quoted=True)
        case ".tsv":
            yield from _read_table(path, "\t", quoted=False)
        case other:
            raise InputError(
                f'{path}: "{other}" files have no columns; '
                f"expected {', '.join(TABLE_ENDINGS)}, each also with {GZIP}"
            )


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = parse(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{place}: not JSON ({error}); expected one object a line, "
                'such as {"source": "...", "target": "..."}'
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{place}: {json_kind(row)}; expected one object a line, "
                'such as {"source": "...", "target": "..."}'
            )
        yield place, row


def _read_table(
    path: Path, delimiter: str, *, quoted: bool
) -> Iterator[tuple[str, dict[str, object]]]:
    lines = (line for _, line in read_lines(path))
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    columns: list[str] | None = None
    number = 1
    try:
        for values in reader:
            # A quoted value may hold line ends: a row starts after the one before it.
            place, number = f"{path}, line {number}", reader.line_num + 1
            if columns is None:
                columns = values
                if len(set(columns)) < len(columns):
                    raise InputError(f"{place}: a column name occurs twice: {columns}")
            elif values:
                if len(values) != len(columns):
                    raise InputError(f"{place}: {_ragged(values, columns, quoted)}")
                yield place, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            raise InputError(
                f"{path}, line {number}: a double quote that opens a value in the row "
                "that begins here is never closed; close it, and write one inside a "
                'value as ""'
            ) from error
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; mend the line, "
            "or write the rows as JSONL"
        ) from error


def _ragged(values: Sequence[str], columns: Sequence[str], quoted: bool) -> str:
    """What to do about a row that has too many values, or too few."""
    found = f"{len(values)} values; expected {len(columns)} ({', '.join(columns)}): "
    if len(values) < len(columns):
        return found + f"{columns[len(values)]} is missing; fill it in"
    if quoted:
        return found + 'put a value that holds a comma between double quotes, "a, b"'
    return found + "a value cannot hold a tab; write a blank, or the rows as JSONL"


def read_documents(path: Path) -> Iterator[str]:
    """Documents of a text file: what stands between lines of `<|endoftext|>` alone.

    In a file without such a line each line is a document. Blank ones are left out.
    """
    separated = any(line == END for line in _bare_lines(path))
    document: list[str] = []
    for line in _bare_lines(path):
        if line != END:
            document.append(line)
        if line == END or not separated:
            yield from _unless_blank("\n".join(document))
            document = []
    yield from _unless_blank("\n".join(document))


def _bare_lines(path: Path) -> Iterator[str]:
    for _, line in read_lines(path):
        yield line.removesuffix("\n").removesuffix("\r")


def _unless_blank(document: str) -> Iterator[str]:
    if document.strip():
        yield document.strip("\n")
