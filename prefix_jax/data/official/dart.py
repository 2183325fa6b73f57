"""DART v1.1.1: JSON lists of triple sets and their texts.

Nan et al. 2021, "DART: Open-Domain Structured Data Record to Text Generation".
"""

import json
from collections.abc import Iterator
from pathlib import Path

from prefix_jax.data.files import LARGEST, find_file, read_lines
from prefix_jax.errors import InputError
from prefix_jax.json_text import parse_part

SPLITS = {
    "train": "dart-v1.1.1-full-train",
    "validation": "dart-v1.1.1-full-dev",
    "test": "dart-v1.1.1-full-test",
}
"""Split names and the official files, which are `<name>.json` or `<name>.json.gz`."""

SOURCE, TEXTS = "source", "references"

_EXPECTED = (
    'expected {"tripleset": [["subject", "RELATION", "object"], ...], '
    '"annotations": [{"text": "..."}, ...]}'
)
_BLANK = " \t\r\n"


def linearise(triples: list[list[str]]) -> str:
    """Triples as the paper's text, relations in lower case.

    `[["Mars Hill College", "JOINED", "1973"]]` becomes
    `Mars Hill College : joined : 1973`; several are joined by ` | `.
    """
    return " | ".join(
        f"{subject} : {relation.lower()} : {thing}"
        for subject, relation, thing in triples
    )


def find_split(folder: Path, split: str) -> Path:
    """The official file of a split, or the file of that name."""
    return find_file(folder, SPLITS.get(split, split), (".json",))


def read(folder: Path, split: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Triple sets as (place, {source, references}), linearised.

    Raises InputError with file and line.
    """
    path = find_split(folder, split)
    for place, entry in _members(path, _text(path)):
        match entry:
            case {"tripleset": list(triples), "annotations": list(annotations)}:
                pass
            case _:
                raise InputError(f"{place}: not an entry of DART; {_EXPECTED}")
        texts = [a.get("text") if isinstance(a, dict) else None for a in annotations]
        if not triples or not all(map(_is_triple, triples)):
            raise InputError(f"{place}: a tripleset that is none; {_EXPECTED}")
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{place}: annotations without a text; {_EXPECTED}")
        yield place, {SOURCE: linearise(triples), TEXTS: texts}


def _text(path: Path) -> str:
    """The whole file, which is one list."""
    lines, size = [], 0
    for number, line in read_lines(path):
        size += len(line)
        if size > LARGEST:
            raise InputError(
                f"{path}, line {number}: more than {LARGEST:,} characters, which is "
                "no file of DART; copy it again"
            )
        lines.append(line)
    return "".join(lines)


def _is_triple(triple: object) -> bool:
    return (
        isinstance(triple, list)
        and len(triple) == 3
        and all(isinstance(part, str) for part in triple)
    )


def _members(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """Members of a JSON list one by one, each with the line that it begins in."""
    line, counted = 1, 0

    def skip(position: int) -> int:
        while position < len(text) and text[position] in _BLANK:
            position += 1
        return position

    def take(position: int, wanted: str) -> str:
        found = text[position : position + 1]
        if not found or found not in wanted:
            number = text.count("\n", 0, position) + 1
            raise InputError(
                f"{path}, line {number}: {found or 'the end'!r} where one of "
                f"{' '.join(wanted)} was expected; the file is a JSON list of entries"
            )
        return found

    position = skip(0)
    take(position, "[")
    position = skip(position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            member, position = parse_part(text, position)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}: not JSON ({error.msg}); "
                "copy the file again"
            ) from error
        yield f"{path}, line {line}", member
        position = skip(position)
        if take(position, ",]") == ",":
            position = skip(position + 1)
