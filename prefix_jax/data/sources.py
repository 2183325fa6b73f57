"""Raw records of every source: pairs of texts, or documents, with their places."""

import dataclasses
import importlib.resources
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from prefix_jax.data.files import (
    ENDINGS,
    TABLE_ENDINGS,
    TEXT_ENDINGS,
    ending,
    find_file,
    listing,
    no_folder,
    read_documents,
    read_rows,
)
from prefix_jax.data.official import parallel
from prefix_jax.data.official.sets import SETS, OfficialSet, Placed, Row, set_of_tfds
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError, closest, json_value

REFERENCES = "references"
"""A column of this name holds a list of accepted targets."""

TFDS = "tfds:"
SOURCES = ("files", "quickstart", *SETS, "parallel", f"{TFDS}NAME")

_SLICE = re.compile(r"(.+)\[(\d*):(\d*)\]")


@dataclasses.dataclass(frozen=True)
class Record:
    """A source text and its accepted targets, as one row of the raw data has them."""

    place: str
    """Where it stands, for messages: `data/train.csv, line 3`."""
    source: str
    targets: tuple[str, ...]
    prefix: str | None = None
    """Name of its prefix, where `data.prefix_column` is set."""
    subset: str | None = None
    """Name of the part of the split that it belongs to, scored for itself too."""


def read_records(config: DataConfig, name: str) -> Iterator[Record]:
    """Pairs of the split or file `name`, in order.

    The target column may hold a list of texts; a column `references` (a list) stands
    in for the target column or adds to it. Raises InputError, also for an empty split.
    """
    source_column, target_column, subset_column = _columns(config)
    place = ""
    for place, row in _rows(config, name):
        source = _texts(row, source_column, place, "data.source_column")
        if len(source) != 1:
            raise InputError(f'{place}: "{source_column}" is a list; expected one text')
        if config.task == "classification":
            row = _label_as_text(row, target_column)
        targets = _targets(row, target_column, place)
        prefix = _name(row, config.prefix_column, place, "data.prefix_column")
        subset = _name(row, subset_column, place, "data.subset_column")
        yield Record(place, source[0], targets, prefix, subset)
    if not place:
        raise _empty(config, name)


def check_place(config: DataConfig) -> None:
    """InputError where the folder that the data are in is not given, or is none."""
    if config.source == "quickstart":
        return
    folder = Path(config.path or ".") if config.source == "files" else _folder(config)
    # TFDS looks for its folders itself, also where no file system is.
    if not (config.source.startswith(TFDS) or folder.is_dir()):
        raise no_folder(folder)


def read_texts(config: DataConfig, name: str) -> Iterator[str]:
    """Documents of the split or file `name`, in order, as they are read.

    They are a text file's documents, or the target column of anything else. Raises
    InputError, also for an empty split.
    """
    text = ""
    for text in _documents(config, name):
        yield text
    if not text:
        raise _empty(config, name)


def _documents(config: DataConfig, name: str) -> Iterator[str]:
    if config.source == "files":
        whole, part = _sliced(name)
        if ending(path := _file(config, whole)) in TEXT_ENDINGS:
            yield from itertools.islice(read_documents(path), part.start, part.stop)
            return
    _, target_column, _ = _columns(config)
    for place, row in _rows(config, name):
        yield from _targets(row, target_column, place)


def is_e2e(config: DataConfig) -> bool:
    """Whether the sources are E2E meaning representations."""
    return _official(config) is SETS["e2e"]


def _official(config: DataConfig) -> OfficialSet | None:
    """The official data set that is read, from its own files or as TFDS stores it."""
    if config.source.startswith(TFDS):
        return set_of_tfds(config.source.removeprefix(TFDS))
    return SETS.get(config.source)


def _columns(config: DataConfig) -> tuple[str, str, str | None]:
    """Names of the columns that hold sources, targets and subsets."""
    if config.source == "quickstart":
        return "source", REFERENCES, config.subset_column
    source = target = subset = None
    if (official := _official(config)) is not None:
        source, target, subset = official.source, official.target, official.subset
    return (
        source or config.source_column,
        target or config.target_column,
        config.subset_column or subset,
    )


def _rows(config: DataConfig, name: str) -> Iterator[Placed]:
    """Rows of the split or file `name` as (place, {column: value})."""
    if config.source.startswith(TFDS):  # which knows slices itself
        return _whole(config, name)
    whole, part = _sliced(name)
    return itertools.islice(_whole(config, whole), part.start, part.stop)


def _sliced(name: str) -> tuple[str, slice]:
    """`train[:1000]` as a name and which of its rows; without brackets all of them."""
    found = _SLICE.fullmatch(name)
    if found is None:
        return name, slice(None)
    start, stop = (_row(number) if number else None for number in found.groups()[1:])
    return found.group(1), slice(start, stop)


def _row(digits: str) -> int:
    """A number of rows; one that no file has is as good as the largest."""
    return int(digits) if len(digits) < len(str(sys.maxsize)) else sys.maxsize


def _whole(config: DataConfig, name: str) -> Iterator[Placed]:
    """All rows of a split or file."""
    if config.source == "files":
        yield from read_rows(_file(config, name))
    elif config.source in SETS:
        yield from SETS[config.source].read(_folder(config), name)
    elif config.source == "parallel":
        languages = config.source_column, config.target_column
        yield from parallel.read(_folder(config), name, languages)
    elif config.source == "quickstart":
        bundled = importlib.resources.files("prefix_jax.data") / "quickstart"
        with importlib.resources.as_file(bundled) as folder:
            yield from read_rows(find_file(folder, name, TABLE_ENDINGS))
    elif config.source.startswith(TFDS):
        # Imported here: it takes a while, and nothing else needs it.
        from prefix_jax.data.tfds_files import read_tfds

        yield from read_tfds(config.source.removeprefix(TFDS), name, _folder(config))
    else:
        raise InputError(
            f'data.source is "{config.source}"; expected one of {", ".join(SOURCES)}'
            f"{closest(config.source, SOURCES)}"
        )


def _folder(config: DataConfig) -> Path:
    if config.path is None:
        raise InputError(
            f'data.source "{config.source}" needs the folder that holds it: give '
            "--data.path FOLDER"
        )
    return Path(config.path)


def _file(config: DataConfig, name: str) -> Path:
    """The file of a `files` source; without data.path its name is a path by itself."""
    endings = ENDINGS if config.task == "language_modelling" else TABLE_ENDINGS
    return find_file(Path(config.path or "."), name, endings)


def _label_as_text(row: Row, column: str) -> Row:
    """JSON may have a label as a number: 1 is the label "1"."""
    label = row.get(column)
    if isinstance(label, int) and not isinstance(label, bool):
        return {**row, column: str(label)}
    return row


def _name(row: Row, column: str | None, place: str, option: str) -> str | None:
    """The name that a row has in a column; None where no column is asked for."""
    if column is None:
        return None
    names = _texts(row, column, place, option)
    if len(names) != 1 or not names[0].strip():
        what = option.removeprefix("data.").removesuffix("_column")
        raise InputError(
            f'{place}: "{column}" ({option}) is {row[column]!r}; expected the name of '
            f"one {what}"
        )
    return names[0]


def _targets(row: Row, column: str, place: str) -> tuple[str, ...]:
    """Accepted targets of a row: its target column, then `references`, no text twice
    over the two."""
    found: tuple[str, ...] = ()
    if column in row or REFERENCES not in row:
        found = _texts(row, column, place, "data.target_column")
    if REFERENCES in row and column != REFERENCES:
        references = _texts(row, REFERENCES, place, "")
        found += tuple(text for text in references if text not in found)
    for text in found:
        if not text.strip():
            raise InputError(f"{place}: an empty target; fill it in or leave it out")
    return found


def _texts(row: Row, column: str, place: str, option: str) -> tuple[str, ...]:
    """The text, or the list of texts, in a column."""
    if column not in row:
        raise InputError(
            f'{place}: no column "{column}"; it has {listing(row)}'
            f"{closest(column, row)}"
            f" (--{option.replace('_', '-')} says which to read)"
        )
    value = row[column]
    given = value if isinstance(value, list) else [value]
    if not given:
        raise InputError(f'{place}: "{column}" is an empty list; expected a text in it')
    texts: list[str] = []
    for text in given:
        if not isinstance(text, str):
            raise InputError(
                f'{place}: "{column}" holds {json_value(text)}; expected text'
            )
        if has_lone_surrogate(text):
            raise InputError(
                f'{place}: "{column}" holds half of a surrogate pair (\\ud800 to '
                "\\udfff), which is no character; mend the text"
            )
        texts.append(text)
    return tuple(texts)


def has_lone_surrogate(text: str) -> bool:
    """Whether it holds what is no character, and no tokenizer takes.

    JSON can have it, and so does what Python makes of bytes that are not UTF-8.
    """
    return not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text)


def _empty(config: DataConfig, name: str) -> InputError:
    where = f"{config.source} {config.path or ''}".rstrip()
    if config.source == "files":
        where = str(_file(config, _sliced(name)[0]))
    return InputError(f'"{name}" of {where} is empty; expected at least one example')
