"""The one table of scores: what each is called, and which are usual for a task."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import get_args

from prefix_jax.data_config import Task
from prefix_jax.errors import InputError
from prefix_jax.score_config import ClassMetric, Metric, TextMetric
from prefix_jax.scoring import text
from prefix_jax.scoring.captions import caption_score, check_available
from prefix_jax.scoring.classes import ClassReport, macro
from prefix_jax.scoring.nist import nist

USUAL: Mapping[Task, tuple[Metric, ...]] = {
    "table_to_text": ("bleu", "nist", "chrf", "rougeL"),
    "summarization": ("rouge1", "rouge2", "rougeL"),
    "translation": ("bleu", "chrf", "ter"),
    "classification": ("accuracy", "macro_precision", "macro_recall", "macro_f1"),
    "language_modelling": (),
}
"""The first is the one to show where there is room for one. (Loss and perplexity are
there for every task.)"""

NAMES: Mapping[str, str] = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "nist": "NIST",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "coco_rougeL": "ROUGE-L (coco)",
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
}

_TEXT: Mapping[str, Callable[[text.Texts, text.References], float]] = {
    "bleu": text.bleu,
    "chrf": text.chrf,
    "ter": text.ter,
    "nist": nist,
    "rouge1": partial(text.rouge, "rouge1"),
    "rouge2": partial(text.rouge, "rouge2"),
    "rougeL": partial(text.rouge, "rougeL"),
    "meteor": partial(caption_score, "meteor"),
    "cider": partial(caption_score, "cider"),
    "coco_rougeL": partial(caption_score, "coco_rougeL"),
}

_CLASS: Mapping[str, Callable[[ClassReport], float]] = {
    "accuracy": lambda report: report.accuracy,
    "macro_precision": lambda report: macro(report.precision),
    "macro_recall": lambda report: macro(report.recall),
    "macro_f1": lambda report: macro(report.f1),
}


def show(metric: str, value: float) -> str:
    """Name and value, `BLEU 45.83`."""
    return f"{NAMES[metric]} {show_value(metric, value)}"


def show_value(metric: str, value: float) -> str:
    """Two decimals; three of what is no score of texts: shares of 1, losses."""
    return f"{value:.{2 if metric in _TEXT else 3}f}"


def metrics_of(task: Task, asked: Sequence[Metric]) -> tuple[Metric, ...]:
    """The scores to compute: those asked for, or the task's usual ones.

    Raises InputError, before any work, for one that the task has not, or that needs
    what is not installed.
    """
    known: tuple[str, ...] = {
        "classification": get_args(ClassMetric),
        "language_modelling": (),
    }.get(task, get_args(TextMetric))
    for name in asked:
        if name not in known:
            raise InputError(
                f'score.metrics has "{name}", which data.task "{task}" does not have; '
                + (f"expected some of {', '.join(known)}" if known else "leave it out")
            )
        if name in ("meteor", "cider", "coco_rougeL"):
            check_available(name)
    return tuple(dict.fromkeys(asked)) or USUAL[task]


def text_scores(
    metrics: Sequence[Metric], texts: text.Texts, references: text.References
) -> dict[str, float]:
    """Scores of texts, by the names of the metrics."""
    return {name: _TEXT[name](texts, references) for name in metrics if name in _TEXT}


def class_scores(metrics: Sequence[Metric], report: ClassReport) -> dict[str, float]:
    """Scores of predicted classes, by the names of the metrics."""
    return {name: _CLASS[name](report) for name in metrics if name in _CLASS}
