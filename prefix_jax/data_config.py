"""Where examples come from and what their rows look like, as a frozen dataclass."""

import dataclasses
from typing import Annotated, Literal

from prefix_jax.checks import Bounds, Positive, Section, Size
from prefix_jax.errors import InputError

Split = Literal["train", "validation", "test"]
Task = Literal["table_to_text", "language_modelling"]

SHORTEST_ROW = 4
"""Tokens of the shortest row: a source, the separator, a target and the end."""


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where examples come from and how they become rows of tokens."""

    task: Task = "table_to_text"
    source: str = "files"
    """`files` (JSONL, CSV, TSV, text), `quickstart`, `e2e` (the official CSV files), or
    `tfds:NAME` (any TFDS data set whose files are array_record)."""
    path: str | None = None
    """Folder that holds the files (for `tfds:`, the TFDS data_dir)."""
    train: str = "train"
    """Split: a file's name in `path` (the ending may be left out), or a split's name.
    So are the next two."""
    validation: str = "validation"
    test: str | None = "test"
    source_column: str = "source"
    target_column: str = "target"
    prefix_column: str | None = None
    """Column that names each row's prefix, to evaluate several of them at once."""
    max_length: Annotated[int, Bounds(least=SHORTEST_ROW, most=1_000_000)] = 256
    """Tokens of source, separator, target and end together."""
    max_target_length: Size | None = None
    """Tokens of the target, its end not counted; None: only `max_length` limits it."""
    overflow: Literal["truncate_source", "drop", "error"] = "truncate_source"
    """What happens to an example that is too long: its source (and a target that is too
    long alone) loses its end, it is left out, or it is an error; always reported."""
    buckets: tuple[Size, ...] = ()
    """Padded row lengths; (): chosen from the data. Each is one compiled program."""
    limit: Positive | None = None
    """Train on the first n examples of the seeded permutation only (of the packed rows,
    in language modelling); None: on all. Validation and test are always whole."""

    def __post_init__(self):
        super().__post_init__()
        if self.prefix_column is not None and self.task != "table_to_text":
            raise InputError(
                f'data.prefix_column is "{self.prefix_column}" but data.task is '
                f'"{self.task}", whose rows are cut from one long text; only rows of '
                '"table_to_text" can name a prefix each'
            )
