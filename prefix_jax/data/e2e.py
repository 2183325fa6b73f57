"""E2E NLG 2017 as its authors distribute it: three CSV files of (mr, ref).

Novikova et al. 2017, "The E2E Dataset: New Challenges For End-to-End Generation".
"""

import re
from collections.abc import Iterator
from pathlib import Path

from prefix_jax.data.files import GZIP, find_file, read_rows
from prefix_jax.errors import InputError, closest, shortened

SPLITS = {"train": "trainset", "validation": "devset", "test": "testset_w_refs"}
"""Split names and the official files, which are `<name>.csv` or `<name>.csv.gz`."""

OFFICIAL_COLUMNS = ("mr", "ref")
MEANING, TEXT = "meaning_representation", "human_reference"
"""What the official columns are called here, and in TFDS."""

# Blanks around a name are in it, and stripped later: a pattern that could put them in
# one place or another would try all of them, for hours.
_ATTRIBUTE = r"([^\[\],]+)\[([^\[\]]*)\]\s*"
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
    found = re.findall(_ATTRIBUTE, meaning) if _MEANING.fullmatch(meaning) else []
    pairs = [(name.strip(), value) for name, value in found]
    if not pairs or not all(name for name, _ in pairs):
        raise InputError(
            f'"{shortened(meaning)}" is not an E2E meaning representation; '
            'expected such as "name[Blue Spice], area[city centre]"'
        )
    return " | ".join(f"{_NAMES.get(name, name)} : {value}" for name, value in pairs)


def find_split(folder: Path, split: str) -> Path:
    """The official file of `train`, `validation` or `test`, or of its own name."""
    stem = SPLITS.get(split, split.removesuffix(GZIP).removesuffix(".csv"))
    if stem not in SPLITS.values():
        raise InputError(
            f'E2E has no split "{split}"; expected one of {", ".join(SPLITS)}'
            f"{closest(split, SPLITS)}"
        )
    return find_file(folder, stem, (".csv",))


def read(folder: Path, split: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Rows of a split as (place, {MEANING, TEXT}), not linearised.

    Raises InputError with file and line.
    """
    path = find_split(folder, split)
    for place, row in read_rows(path):
        if not set(OFFICIAL_COLUMNS) <= row.keys():
            raise InputError(
                f"{path}, line 1: columns {', '.join(row)}; "
                f"expected {', '.join(OFFICIAL_COLUMNS)}"
            )
        meaning, text = (row[column] for column in OFFICIAL_COLUMNS)
        yield place, {MEANING: meaning, TEXT: text}
