"""Prompts to write for: from a file or standard input, each with its place."""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

from prefix_jax.checks import Seed, check
from prefix_jax.data.files import read_lines
from prefix_jax.data.tasks import check_name
from prefix_jax.errors import InputError, closest
from prefix_jax.json_text import parse


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing to write."""

    prompt: str
    prefix: str | None = None
    """Name of the prefix to write it with; None: the only one."""
    seed: Seed | None = None
    """Of its samples; None: decode.seed and its number."""
    place: str = dataclasses.field(default="", compare=False)
    """Where it stands, for messages: `rows.jsonl, line 3`."""

    def __str__(self) -> str:
        return self.place or f'prompt "{textwrap.shorten(self.prompt, 40)}"'


def read_prompts(file: Path | None) -> list[Line]:
    """Lines of a file, or of standard input; blank ones are left out.

    A `.jsonl` or `.ndjson` file, or input that begins with `{"`, has objects with
    `prompt` and, where there are several prefixes, `prefix`; a `seed` is its samples'
    own. Raises InputError with file and line.
    """
    if file is None:
        if sys.stdin.isatty():
            print("prompts, one a line; end with Ctrl-D", file=sys.stderr)
        lines = enumerate(_read_stdin().splitlines(), 1)
    else:
        if file.is_dir():
            raise InputError(f"--file {file} is a folder; give a file of prompts")
        if not file.exists():
            raise InputError(f"there is no file {file} to read prompts from")
        lines = read_lines(file)
    source = file or "standard input"
    every = [(f"{source}, line {n}", text.strip()) for n, text in lines]
    placed = [(place, text) for place, text in every if text]
    if not placed:
        raise InputError(f"{source} has no prompt; give one a line")
    last = every.index(placed[-1]) + 1
    if blank := last - len(placed):
        left_out = "1 blank line is" if blank == 1 else f"{blank} blank lines are"
        print(f"{source}: {left_out} left out", file=sys.stderr)
    if file is None:
        objects = placed[0][1].startswith('{"')
    else:
        objects = not {".jsonl", ".ndjson"}.isdisjoint(file.suffixes)
    if not objects:
        return [Line(text, place=place) for place, text in placed]
    return [_json_line(text, place) for place, text in placed]


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 ({error.reason} at byte {error.start}); "
            "convert it, or give a --file in UTF-8"
        ) from error


def _json_line(text: str, place: str) -> Line:
    try:
        row = parse(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(
            f'{place}: expected {{"prompt": "...", "prefix": "NAME", "seed": 0}}, of '
            f"which the last two may be left out; got {text[:80]}"
        )
    fields = get_type_hints(Line, include_extras=True)
    del fields["place"]
    for name, value in row.items():
        if name not in fields:
            raise InputError(
                f'{place}: unknown field "{name}"{closest(name, fields)}; expected '
                f"{', '.join(fields)}"
            )
        check(f"{place}: {name}", value, fields[name])
    return Line(**row, place=place)


def check_lines(lines: Sequence[Line], names: Sequence[str]) -> None:
    """InputError unless there is a line, and each can be written with these prefixes.

    For that it has a prompt, and names its prefix where there are several.
    """
    if not lines:
        raise InputError("there is no prompt; give at least one")
    for line in lines:
        if not line.prompt.strip():
            raise InputError(
                f"{line}: the prompt is empty; give at least a word to go on from"
            )
        if line.prefix is not None:
            try:
                check_name(line.prefix, names)
            except InputError as error:
                raise InputError(f"{line}: {error}") from error
        elif len(names) > 1:
            raise InputError(
                f"{line} does not name its prefix; with several (here "
                f"{', '.join(names)}) give JSON lines such as "
                f'{{"prompt": "...", "prefix": "{names[0]}"}} with --file x.jsonl'
            )
