"""What an evaluation found, on the screen and in files."""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from prefix_jax.checks import NotNegative, check, words
from prefix_jax.config import FIELDS
from prefix_jax.data.tasks import Split
from prefix_jax.errors import counted
from prefix_jax.runs.validate import Written
from prefix_jax.scoring.classes import ClassReport
from prefix_jax.scoring.metrics import NAMES, show, show_value
from prefix_jax.storage.files import write_json, write_text

LARGEST_TABLE = 12
"""A confusion matrix of more classes is in the file only."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of values, each with a name, for the screen and for `report`'s page."""

    head: str
    """Of the column of names."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores on one split."""

    split: Split
    which: str
    """`best` or `last` of a run, `none`, or the name of a prefix."""
    loss: float
    """Nats per target token; NaN where it was not measured (`score.loss`)."""
    perplexity: float
    tokens: int
    """That the loss is of; 0 where it was not measured."""
    sources: int
    cut_sources: int
    """Sources whose end was cut, to fit the backbone's positions."""
    scores: Mapping[str, float]
    """By the names of `score.metrics`; empty where the task has no references."""
    subsets: Mapping[str, Mapping[str, int | float]]
    """The same of each subset, and its number of `sources`, where the data have any."""
    classes: ClassReport | None
    """In classification, what was predicted for what."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What shaped it otherwise than the defaults do, by name: `limit`, and fields of a
    recipe such as `decode.method` and `score.content_free`."""

    @property
    def has_loss(self) -> bool:
        """Whether it was measured."""
        return self.tokens > 0

    def to_dict(self) -> dict:
        """Plain values, ready for JSON."""
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        if self.classes is not None:
            values["classes"] = self.classes.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `to_dict`; a null loss, of a run that diverged, is NaN.

        Raises KeyError, TypeError or ValueError for what is no evaluation.
        """
        classes = values["classes"]
        if classes is not None:
            confusion = tuple(tuple(row) for row in classes["confusion"])
            classes = ClassReport(tuple(classes["labels"]), confusion)
        numbers: dict[str, Any]
        numbers = {name: _number(values[name]) for name in ("loss", "perplexity")}
        numbers["scores"] = _numbers(values["scores"])
        numbers["settings"] = {  # JSON has no tuples
            name: tuple(value) if isinstance(value, list) else value
            for name, value in dict(values.get("settings", {})).items()
        }
        subsets = dict(values["subsets"])
        numbers["subsets"] = {name: _numbers(one) for name, one in subsets.items()}
        found = cls(**{**values, **numbers, "classes": classes})
        found._check()
        return found

    def _check(self) -> None:
        """What the fields hold and their types do not say; raises as `from_dict`."""
        check("split", self.split, Split)
        for name in ("tokens", "sources", "cut_sources"):
            check(name, getattr(self, name), NotNegative)
        # It is a part of file names.
        if not isinstance(self.which, str) or not re.fullmatch(
            r"[^/\\\0]{,200}", self.which
        ):
            raise ValueError("no name of a prefix")
        for name, value in self.settings.items():
            check(name, value, NotNegative if name == "limit" else FIELDS[name])
        wanted = {"sources", *self.scores}
        # A single one is not shown.
        if len(self.subsets) > 1 and not all(
            wanted <= scores.keys() for scores in self.subsets.values()
        ):
            raise ValueError("a subset has other scores")
        if self.classes is not None:
            labels, confusion = self.classes.labels, self.classes.confusion
            check("labels", labels, tuple[str, ...])
            for row in confusion:
                check("confusion", row, tuple[NotNegative, ...])
            if {len(row) for row in (*confusion, confusion)} != {len(labels)}:
                raise ValueError("a confusion matrix that is not square")


def _numbers(values: object) -> dict[str, int | float]:
    if not isinstance(values, Mapping):
        raise TypeError("no scores")
    return {name: _number(value) for name, value in values.items()}


def _number(value: object) -> int | float:
    """A number of a JSON file, where NaN is null; TypeError for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("no number")
    if abs(value) > sys.float_info.max:
        raise ValueError("a number beyond every float")
    return value


def write_evaluation(workdir: Path, result: Evaluation, written: Written) -> None:
    """Scores and outputs of a split, SPLIT, with a prefix, WHICH.

    scores_SPLIT_WHICH.json       what `Evaluation` has
    outputs_SPLIT_WHICH.jsonl     source, text and references of each example
    outputs_SPLIT_WHICH.txt       as the scripts of e2e-metrics read them: one text a
    references_SPLIT_WHICH.txt    line; references so too, an empty line after a group

    Line ends in a text are blanks in the .txt files.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    name = f"{result.split}_{result.which}"
    write_json(workdir / f"scores_{name}.json", result.to_dict())
    rows = list(zip(written.examples, written.texts, strict=True))
    lines = [
        {"source": example.source, "text": text, "references": example.references}
        for example, text in rows
    ]
    if written.probabilities is not None:
        for line, own in zip(lines, written.probabilities.tolist(), strict=True):
            line["probabilities"] = own
    write_text(
        workdir / f"outputs_{name}.jsonl",
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    )
    if rows:
        texts = "".join(f"{_one_line(text)}\n" for _, text in rows)
        write_text(workdir / f"outputs_{name}.txt", texts)
        groups = [map(_one_line, example.references) for example, _ in rows]
        references = "".join("\n".join(group) + "\n\n" for group in groups)
        write_text(workdir / f"references_{name}.txt", references)


def print_evaluation(result: Evaluation, console: Console) -> None:
    """One line; then, where there are any, tables of subsets and classes."""
    found = [show(name, value) for name, value in result.scores.items()]
    of = [counted(result.sources, "source")]
    if result.has_loss:
        found[:0] = [
            f"loss {result.loss:.4f} nats per target token",
            f"perplexity {result.perplexity:.3f}",
        ]
        of.append(counted(result.tokens, "target token"))
    if not result.sources:  # as in language modelling
        del of[0]
    how = show_settings(result)
    console.print(
        f"{result.split}, {result.which}: {', '.join(found)} ({', '.join(of)}"
        f"{'; ' if how else ''}{how})",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if len(result.subsets) > 1:
        console.print(_on_screen(subset_table(result)))
    if result.classes is not None:
        console.print(_on_screen(class_table(result.classes)))
        if len(result.classes.labels) <= LARGEST_TABLE:
            console.print(_on_screen(confusion_table(result.classes)))


def show_settings(result: Evaluation) -> str:
    """`limit 50, score.content_free N/A`; empty where all are the defaults."""
    return ", ".join(
        f"{name} {' '.join(words(value))}" for name, value in result.settings.items()
    )


def subset_table(result: Evaluation) -> Table:
    """The scores of each subset, and of all."""
    return Table(
        "subset",
        ["sources", *(NAMES.get(name, name) for name in result.scores)],
        [
            (name, [f"{scores['sources']:,.0f}", *_values(scores, result.scores)])
            for name, scores in result.subsets.items()
        ]
        + [("all", [f"{result.sources:,}", *_values(result.scores, result.scores)])],
    )


def _values(scores: Mapping[str, int | float], names: Mapping[str, float]) -> list[str]:
    return [show_value(name, scores[name]) for name in names]


def class_table(report: ClassReport) -> Table:
    """The scores of each class."""
    columns = report.precision, report.recall, report.f1, report.support
    return Table(
        "class",
        ["precision", "recall", "F1", "examples"],
        [
            (label, [f"{p:.3f}", f"{r:.3f}", f"{f:.3f}", f"{n:,}"])
            for label, p, r, f, n in zip(report.labels, *columns, strict=True)
        ],
    )


def confusion_table(report: ClassReport) -> Table:
    """How often each class was predicted for each."""
    return Table(
        "true \\ predicted",
        report.labels,
        [
            (label, [f"{count:,}" for count in row])
            for label, row in zip(report.labels, report.confusion, strict=True)
        ],
    )


def _on_screen(table: Table) -> RichTable:
    shown = RichTable()
    shown.add_column(table.head, no_wrap=True)
    for column in table.columns:
        shown.add_column(column, justify="right")
    for name, values in table.rows:
        shown.add_row(name, *values)
    return shown


def _one_line(text: str) -> str:
    return " ".join(text.split())
