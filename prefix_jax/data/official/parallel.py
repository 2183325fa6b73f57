"""Parallel text: for each language a file with one sentence a line, `train.en`.

Multi30k (Elliott et al. 2016) comes so.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefix_jax.data.files import GZIP, listing, read_lines
from prefix_jax.errors import InputError, closest

MULTI30K = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
"""Splits of Multi30k and its files, which are `<name>.<language>` or `.gz` of it."""
MULTI30K_LANGUAGES = ("en", "de", "fr")


def read(
    folder: Path, name: str, languages: Sequence[str]
) -> Iterator[tuple[str, dict[str, object]]]:
    """Lines of `NAME.LANGUAGE` as (place, {language: sentence}).

    The place names the first language's file. Raises InputError where a file is missing
    or the files have different numbers of lines.
    """
    paths = [find(folder, name, language) for language in languages]
    lines = itertools.zip_longest(*map(read_lines, paths))
    for number, row in enumerate(lines, start=1):
        for path, line in zip(paths, row, strict=True):
            if line is None:
                others = ", ".join(other.name for other in paths if other != path)
                raise InputError(
                    f"{path}, line {number}: the file ends before {others}; parallel "
                    "files have as many lines each"
                )
        sentences = [line[1].strip() for line in row]
        yield (
            f"{paths[0]}, line {number}",
            dict(zip(languages, sentences, strict=True)),
        )


def find(folder: Path, name: str, language: str) -> Path:
    """The file of one language; InputError with what is there."""
    for end in ("", GZIP):
        path = folder / f"{name}.{language}{end}"
        if path.is_file():
            return path
    present = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    hint = closest(f"{name}.{language}", [p.removesuffix(GZIP) for p in present])
    raise InputError(
        f"{folder} has no file {name}.{language} (or {name}.{language}{GZIP}); it "
        f"holds {listing(present)}{hint} (data.source_column and data.target_column "
        "are the languages)"
    )
