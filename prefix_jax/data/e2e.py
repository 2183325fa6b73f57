"""E2E NLG 2017 as its authors distribute it: three CSV files of (mr, ref).

Novikova et al. 2017, "The E2E Dataset: New Challenges For End-to-End Generation".
"""

import re
from pathlib import Path

from prefix_jax.data.files import GZIP, find_file
from prefix_jax.errors import InputError, closest

SPLITS = {"train": "trainset", "validation": "devset", "test": "testset_w_refs"}
"""Split names and the official files, which are `<name>.csv` or `<name>.csv.gz`."""

MEANING, TEXT = "mr", "ref"
"""Columns of the official files."""

TFDS_NAME = "e2e_nlg"
TFDS_MEANING, TFDS_TEXT, TFDS_ID = "meaning_representation", "human_reference", "id"
"""Our TFDS builder's name and columns; the id is the row's number in its file."""

_ATTRIBUTE = r"\s*([^\[\],]+?)\s*\[([^\[\]]*)\]\s*"
_MEANING = re.compile(f"{_ATTRIBUTE}(,{_ATTRIBUTE})*")
_NAMES = {
    "eatType": "Type",
    "priceRange": "price",
    "familyFriendly": "family friendly",
}


def linearise(meaning: str) -> str:
    """An E2E meaning representation as the paper's text for the model.

    `name[Blue Spice], eatType[coffee shop], area[city centre]` becomes
    `name : Blue Spice | Type : coffee shop | area : city centre`. Raises InputError
    where the text is not of the first form.
    """
    if not _MEANING.fullmatch(meaning):
        raise InputError(
            f'"{meaning}" is not an E2E meaning representation; '
            'expected such as "name[Blue Spice], area[city centre]"'
        )
    return " | ".join(
        f"{_NAMES.get(name, name)} : {value}"
        for name, value in re.findall(_ATTRIBUTE, meaning)
    )


def find_split(folder: Path, split: str) -> Path:
    """The official file of `train`, `validation` or `test`, or of its own name."""
    stem = SPLITS.get(split, split.removesuffix(GZIP).removesuffix(".csv"))
    if stem not in SPLITS.values():
        raise InputError(
            f'E2E has no split "{split}"; expected one of {", ".join(SPLITS)}'
            f"{closest(split, SPLITS)}"
        )
    return find_file(folder, stem, (".csv",))


def has_files(folder: Path) -> bool:
    """Whether the three official files are there."""
    return all(
        any((folder / f"{stem}.csv{gzip}").is_file() for gzip in ("", GZIP))
        for stem in SPLITS.values()
    )
