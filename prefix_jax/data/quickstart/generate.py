"""Writes the quick start's data set: `python -m prefix_jax.data.quickstart.generate`.

Deterministic from one seed, with the standard library only: the files that are
committed beside this module are what it writes, byte for byte.
"""

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from prefix_jax.data.quickstart import meanings
from prefix_jax.data.quickstart.check import faults
from prefix_jax.data.quickstart.grammar import realise
from prefix_jax.data.quickstart.meanings import Meaning

SEED = 2021
TRAIN_SOURCES = 1250
TRAIN_PAIRS = 2000
HELD_OUT_SOURCES = 100
HELD_OUT_REFERENCES = 5

_HELD_OUT_SUBSET_SHARE = 0.3  # of validation and test
_TRIES_A_REFERENCE = 40
_MOST_SHARED_BIGRAMS = 0.8


@dataclass(frozen=True)
class Record:
    """One source with everything that may be written about it."""

    source: str
    references: tuple[str, ...]

    def to_json(self) -> str:
        """The record as one line of JSON, without its newline."""
        record = {"source": self.source, "references": list(self.references)}
        return json.dumps(record, ensure_ascii=False)


def make_splits(seed: int = SEED) -> dict[str, list[Record]]:
    """The records of `train`, `validation` and `test`."""
    rng = random.Random(seed)
    hidden = meanings.held_out_subsets(rng)
    taken = _Taken()
    test = _held_out_split(rng, hidden, taken)
    validation = _held_out_split(rng, hidden, taken)
    two_references = set(rng.sample(range(TRAIN_SOURCES), TRAIN_PAIRS - TRAIN_SOURCES))
    train = []
    while len(train) < TRAIN_SOURCES:
        facts = meanings.draw_subset(rng)
        meaning = meanings.tell(meanings.draw_place(rng, unseen=False), facts)
        if facts in hidden or not taken.free_for_training(meaning):
            continue
        count = 2 if len(train) in two_references else 1
        references = _references(meaning, count, rng)
        if references:
            taken.sources.add(meanings.linearise(meaning))
            train.append(Record(meanings.linearise(meaning), references))
    return {"train": train, "validation": validation, "test": test}


def write_splits(splits: dict[str, list[Record]], folder: Path) -> None:
    """Writes `train.jsonl`, `validation.jsonl` and `test.jsonl` into the folder."""
    for name, records in splits.items():
        text = "".join(f"{record.to_json()}\n" for record in records)
        (folder / f"{name}.jsonl").write_bytes(text.encode())


class _Taken:
    """What earlier splits used and later ones may not."""

    def __init__(self) -> None:
        self.sources: set[str] = set()
        self.names: set[str] = set()
        self.combinations: set[str] = set()

    def free_for_held_out(self, meaning: Meaning) -> bool:
        """Whether neither the name nor the values beside it were used."""
        return (
            meaning["name"] not in self.names
            and _combination(meaning) not in self.combinations
        )

    def free_for_training(self, meaning: Meaning) -> bool:
        """Whether no held-out record, and no training source, is the same."""
        return (
            self.free_for_held_out(meaning)
            and meanings.linearise(meaning) not in self.sources
        )

    def hold_out(self, meaning: Meaning) -> None:
        """Keeps the meaning from every later split."""
        self.names.add(meaning["name"])
        self.combinations.add(_combination(meaning))


def _combination(meaning: Meaning) -> str:
    """The meaning but for its name."""
    return meanings.linearise({k: v for k, v in meaning.items() if k != "name"})


def _held_out_split(
    rng: random.Random, hidden: frozenset[frozenset[str]], taken: _Taken
) -> list[Record]:
    """A validation or test split: new names, combinations, values and subsets."""
    order = sorted(hidden, key=sorted)
    records: list[Record] = []
    while len(records) < HELD_OUT_SOURCES:
        is_hidden = len(records) < _HELD_OUT_SUBSET_SHARE * HELD_OUT_SOURCES
        facts = rng.choice(order) if is_hidden else meanings.draw_subset(rng)
        meaning = meanings.tell(meanings.draw_place(rng, unseen=True), facts)
        if not taken.free_for_held_out(meaning):
            continue
        references = _references(meaning, HELD_OUT_REFERENCES, rng)
        if references:
            taken.hold_out(meaning)
            records.append(Record(meanings.linearise(meaning), references))
    rng.shuffle(records)
    return records


def _references(meaning: Meaning, count: int, rng: random.Random) -> tuple[str, ...]:
    """So many references that differ, or none if the grammar has not as many.

    Raises AssertionError if the grammar writes what `check` refuses, which would be
    a fault of this package.
    """
    source = meanings.linearise(meaning)
    chosen: list[str] = []
    for _ in range(count * _TRIES_A_REFERENCE):
        text = realise(meaning, rng)
        found = faults(source, text)
        if found:
            raise AssertionError(f"{source!r} as {text!r}: {'; '.join(found)}")
        if all(_shared_bigrams(text, other) < _MOST_SHARED_BIGRAMS for other in chosen):
            chosen.append(text)
        if len(chosen) == count:
            return tuple(chosen)
    return ()


def _shared_bigrams(one: str, other: str) -> float:
    """The Jaccard similarity of two texts' word pairs, from 0 to 1."""
    first, second = (_bigrams(text.split()) for text in (one, other))
    return len(first & second) / len(first | second)


def _bigrams(tokens: list[str]) -> frozenset[tuple[str, str]]:
    """The pairs of neighbouring words."""
    return frozenset(pairwise(tokens))


def main(arguments: Iterable[str] | None = None) -> None:
    """The command line; `--out` and `--seed` have the committed files as default."""
    parser = argparse.ArgumentParser(
        prog="python -m prefix_jax.data.quickstart.generate",
        description="Write the quick start's train, validation and test JSONL files.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        help="an existing folder (default: the package's own)",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help=f"default: {SEED}, the committed files"
    )
    given = parser.parse_args(None if arguments is None else list(arguments))
    if not given.out.is_dir():
        parser.error(f"--out {given.out} is not a folder; create it first")
    splits = make_splits(given.seed)
    write_splits(splits, given.out)
    for name, records in splits.items():
        pairs = sum(len(record.references) for record in records)
        print(f"{name}: {len(records)} sources, {pairs} references")


if __name__ == "__main__":
    main()
