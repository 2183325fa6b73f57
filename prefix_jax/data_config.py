"""Where examples come from and what their rows look like, as a frozen dataclass."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from prefix_jax.checks import Bounds, Positive, Section, Seed, Size
from prefix_jax.errors import InputError

Split = Literal["train", "validation", "test"]
Task = Literal[
    "table_to_text",
    "summarization",
    "translation",
    "classification",
    "language_modelling",
]

SHORTEST_ROW = 4
"""Tokens of the shortest row: a source, the separator, a target and the end."""


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where examples come from and how they become rows of tokens."""

    task: Task = "table_to_text"
    source: str = "files"
    """`files` (JSONL, CSV, TSV, text), `quickstart`, the official files of `e2e`,
    `webnlg`, `dart`, `xsum`, `sst2` or `multi30k`, `parallel` (one file a language,
    such as train.en), or `tfds:NAME` (any TFDS data set whose files are
    array_record)."""
    path: str | None = None
    """Folder that holds the files (for `tfds:`, the TFDS data_dir)."""
    train: str = "train"
    """Split: a file's name in `path` (the ending may be left out), or a split's name;
    a part of its rows with a slice, such as `train[:1000]`. So are the next two."""
    validation: str = "validation"
    test: str | None = "test"
    source_column: str = "source"
    """Column of the text to read; for parallel text the language. So is the next."""
    target_column: str = "target"
    prefix_column: str | None = None
    """Column that names each row's prefix, to evaluate several of them at once."""
    subset_column: str | None = None
    """Column that names a part of the split, to be scored for itself too; WebNLG has
    one (`seen`, `unseen`)."""
    labels: tuple[str, ...] = ()
    """`RAW=WORDS` for each class: what the target column says, and the words that the
    model writes for it, such as `0=negative` `1=positive`. `classification` only."""
    separator: str | None = None
    """Text between source and target, one token, such as a line break. None: the
    tokenizer's begin token, which for a chat model is a mark of its own."""
    max_length: Annotated[int, Bounds(least=SHORTEST_ROW, most=1_000_000)] = 256
    """Tokens of source, separator, target and end together."""
    max_target_length: Size | None = None
    """Tokens of the target, its end not counted; None: only `max_length` limits it."""
    overflow: Literal["truncate_source", "drop", "error"] = "truncate_source"
    """What happens to an example that is too long: its source (and a target that is too
    long alone) loses its end, it is left out, or it is an error; always reported."""
    buckets: tuple[Size, ...] = ()
    """Padded row lengths; (): chosen from the data. Each is one compiled program."""
    pack: Size | None = None
    """Put several examples into each row of so many tokens (256, say): each sees the
    prefix and itself, as if alone, and hardly a token is padding. A batch then has
    train.batch_size such rows. For training only; None: one example a row."""
    limit: Positive | None = None
    """Train on the first n examples of a seeded permutation only (of the packed rows,
    in language modelling); None: on all."""
    validation_limit: Positive | None = None
    """The same of the validation split's sources, for a small dev set. The test split
    is always whole."""
    subsample_seed: Seed | None = None
    """Of these permutations, so that runs of other seeds have the same examples; None:
    train.seed."""

    def __post_init__(self):
        super().__post_init__()
        if self.path is not None and self.source == "quickstart":
            raise InputError(
                f'data.path is "{self.path}" but data.source is "quickstart", which is '
                "bundled and read from nowhere else; give --data.source files, or the "
                "name of the official files that are there"
            )
        if self.pack and self.task == "language_modelling":
            raise InputError(
                f'data.pack is {self.pack} but data.task is "{self.task}", whose rows '
                "of data.max_length tokens are full; leave data.pack out"
            )
        if self.separator is not None and self.task == "language_modelling":
            raise InputError(
                f"data.separator is {self.separator!r} but data.task is "
                f'"{self.task}", which has no source before a target; leave it out'
            )
        for name in ("prefix_column", "subset_column"):
            column = getattr(self, name)
            if column is not None and self.task == "language_modelling":
                raise InputError(
                    f'data.{name} is "{column}" but data.task is "{self.task}", whose '
                    "rows are cut from one long text; only rows of the other tasks can "
                    f"name a {name.removesuffix('_column')} each"
                )
        if (self.task == "classification") != bool(self.labels):
            raise InputError(
                f'data.labels is {self.labels} and data.task "{self.task}"; '
                '"classification", and it alone, needs them, such as --data.labels '
                "0=negative 1=positive"
            )
        label_words(self.labels)
        if self.subsample_seed is not None and not (
            self.limit or self.validation_limit
        ):
            raise InputError(
                f"data.subsample_seed is {self.subsample_seed}, but there is no "
                "subsample: give data.limit, data.validation_limit or both"
            )


def label_words(labels: Sequence[str]) -> dict[str, str]:
    """{raw label: its words}, of `RAW=WORDS` each.

    Raises InputError for another form, for fewer than two, and where two classes have
    the same label or words.
    """
    pairs = [label.partition("=") for label in labels]
    for label, (raw, _, words) in zip(labels, pairs, strict=True):
        if not raw or not words.strip():
            raise InputError(
                f'data.labels has "{label}"; expected RAW=WORDS, such as "1=positive"'
            )
    found = {raw: words.strip() for raw, _, words in pairs}
    if labels and len({*found.values()}) < max(len(labels), 2):
        raise InputError(
            f"data.labels is {' '.join(labels)}; expected two classes or more, each "
            "with a label and words of its own"
        )
    return found
