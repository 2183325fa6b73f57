"""Examples of a task: what the model reads and what it should write."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from prefix_jax.data.e2e import linearise
from prefix_jax.data.sources import Record, is_e2e, read_records, read_texts
from prefix_jax.data_config import DataConfig, Split, label_words
from prefix_jax.errors import InputError, closest

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Example:
    """One source with what may be written for it."""

    source: str
    """Text the model reads (linearised), without separators."""
    target: str
    """The text to learn: the first reference."""
    references: tuple[str, ...]
    """Every accepted target for this source, at least one."""
    prefix: str | None = None
    """Name of the prefix to write it with, where its row names one."""
    subset: str | None = None
    """Name of the part of the split that it belongs to, where its row names one."""


def load_examples(
    config: DataConfig, split: Split, prefixes: Sequence[str] = ()
) -> list[Example]:
    """Examples of a split, in the order of the raw data.

    `train`: one Example per pair of source and target. `validation`, `test`: one per
    distinct source (prefix and subset), in the order of first occurrence, with all of
    its references. In classification, one per row in every split, its target the words
    of its label. With `data.prefix_column` each row names one of `prefixes`.
    E2E's meaning representations are linearised as in the paper; other sources are
    taken as they are. Raises InputError with file and line.
    """
    if config.task == "language_modelling":
        raise InputError(
            f'data.task "{config.task}" has documents, not examples; '
            'for examples set data.task to another, such as "table_to_text"'
        )
    if config.prefix_column is not None and not prefixes:
        raise InputError(
            f'data.prefix_column is "{config.prefix_column}", but there are no '
            "prefixes to choose from; it is for `evaluate` with --prefix NAME=FOLDER "
            "for each name"
        )
    records = read_records(config, _split_name(config, split))
    found = _task_records(records, config, prefixes)
    if split == "train" or config.task == "classification":
        return [
            Example(one.source, target, (target,), one.prefix, one.subset)
            for one in found
            for target in one.targets
        ]
    groups: dict[tuple[str, str | None, str | None], list[str]] = {}
    for one in found:
        key = one.source, one.prefix, one.subset
        groups.setdefault(key, []).extend(one.targets)
    return [
        Example(source, targets[0], tuple(targets), prefix, subset)
        for (source, prefix, subset), targets in groups.items()
    ]


def load_documents(config: DataConfig, split: Split) -> Iterator[str]:
    """Documents of a split for language modelling, in order, read as needed.

    They are the documents of a text file, or the target column of other sources.
    """
    yield from read_texts(config, _split_name(config, split))


def limit_examples(
    examples: Sequence[_Item], limit: int | None, *, seed: int
) -> list[_Item]:
    """The first `limit` examples (or rows) in the order of the seeded permutation.

    All of them, in their own order, where `limit` is None; all, permuted, where there
    are fewer. The permutation is `numpy.random.default_rng(seed).permutation`.
    """
    if limit is None:
        return list(examples)
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[number] for number in order[:limit]]


def first_of_each(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` examples of each prefix that they name, in order; None: all."""
    taken = collections.Counter[str | None]()
    kept = []
    for example in examples:
        taken[example.prefix] += 1
        if limit is None or taken[example.prefix] <= limit:
            kept.append(example)
    return kept


def _split_name(config: DataConfig, split: Split) -> str:
    name = {
        "train": config.train,
        "validation": config.validation,
        "test": config.test,
    }[split]
    if name is None:
        raise InputError(f"data.{split} is None; name the split or file to read")
    return name


def _task_records(
    records: Iterator[Record], config: DataConfig, prefixes: Sequence[str]
) -> Iterator[Record]:
    """The records as the model reads them; their prefixes and labels are known ones."""
    linearised, words = is_e2e(config), label_words(config.labels)
    for record in records:
        source, targets = record.source, record.targets
        try:
            if record.prefix is not None:
                check_name(record.prefix, prefixes)
            if linearised:
                source = linearise(source)
            if words:
                targets = (_words_of(targets, words),)
        except InputError as error:
            raise InputError(f"{record.place}: {error}") from error
        yield dataclasses.replace(record, source=source, targets=targets)


def _words_of(targets: Sequence[str], words: dict[str, str]) -> str:
    """The words of the one label that a row has."""
    if len(targets) != 1:
        raise InputError(f"{len(targets)} labels; expected one")
    [raw] = targets
    if raw not in words:
        raise InputError(
            f'label "{raw}" is not in data.labels{closest(raw, words)}; expected one '
            f"of {', '.join(words)}"
        )
    return words[raw]


def check_name(name: str, prefixes: Sequence[str]) -> None:
    """InputError, with the known names, unless a prefix is called `name`."""
    if name not in prefixes:
        raise InputError(
            f'there is no prefix "{name}"{closest(name, prefixes)}; expected one of '
            f"{', '.join(prefixes) or '(none was given)'}"
        )
