"""Examples of a task: what the model reads and what it should write."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from prefix_jax.config import DataConfig
from prefix_jax.data.e2e import linearise
from prefix_jax.data.sources import Record, is_e2e, read_records, read_texts
from prefix_jax.errors import InputError

Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One source with what may be written for it."""

    source: str
    """Text the model reads (linearised), without separators."""
    target: str
    """The text to learn: the first reference."""
    references: tuple[str, ...]
    """Every accepted target for this source, at least one."""


def load_examples(config: DataConfig, split: Split) -> list[Example]:
    """Examples of a split, in the order of the raw data.

    `train`: one Example per pair of source and target. `validation`, `test`: one per
    distinct source, in the order of first occurrence, with all of its references.
    E2E's meaning representations are linearised as in the paper; other sources are
    taken as they are. Raises InputError with file and line.
    """
    if config.task != "table_to_text":
        raise InputError(
            f'data.task "{config.task}" has documents, not examples; '
            'for examples set data.task to "table_to_text"'
        )
    records = read_records(config, _split_name(config, split))
    pairs = (
        (source, target)
        for source, targets in _task_texts(records, is_e2e(config))
        for target in targets
    )
    if split == "train":
        return [Example(source, target, (target,)) for source, target in pairs]
    groups: dict[str, list[str]] = {}
    for source, target in pairs:
        groups.setdefault(source, []).append(target)
    return [
        Example(source, targets[0], tuple(targets))
        for source, targets in groups.items()
    ]


def load_documents(config: DataConfig, split: Split) -> Iterator[str]:
    """Documents of a split for language modelling, in order, read as needed.

    They are the documents of a text file, or the target column of other sources.
    """
    yield from read_texts(config, _split_name(config, split))


def limit_examples(
    examples: Sequence[Example], limit: int | None, *, seed: int
) -> list[Example]:
    """The first `limit` of the examples in the order of the seeded permutation.

    All of them, in their own order, where `limit` is None; all, permuted, where there
    are fewer. The permutation is `numpy.random.default_rng(seed).permutation`.
    """
    if limit is None:
        return list(examples)
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[number] for number in order[:limit]]


def _split_name(config: DataConfig, split: Split) -> str:
    name = {
        "train": config.train,
        "validation": config.validation,
        "test": config.test,
    }[split]
    if name is None:
        raise InputError(f"data.{split} is None; name the split or file to read")
    return name


def _task_texts(
    records: Iterator[Record], linearised: bool
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for record in records:
        try:
            source = linearise(record.source) if linearised else record.source
        except InputError as error:
            raise InputError(f"{record.place}: {error}") from error
        yield source, record.targets
