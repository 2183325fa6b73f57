"""The tables of what runs train and score, for `report`'s page."""

import math
from collections.abc import Iterator, Sequence

from prefix_jax.runs.compare import LABELS
from prefix_jax.runs.evaluation import (
    LARGEST_TABLE,
    Evaluation,
    Table,
    class_table,
    confusion_table,
    show_settings,
    subset_table,
)
from prefix_jax.runs.folders import Run
from prefix_jax.runs.page import NOTHING, evaluation_label, setting
from prefix_jax.runs.show import show_size
from prefix_jax.scoring.metrics import NAMES, show_value


def score_table(runs: Sequence[Run]) -> tuple[Table, list[tuple[str, int]]]:
    """One row a run, or other evaluation in its folder; and groups of columns."""
    named = any(LABELS.get(run.method) != run.label for run in runs)
    columns = ["method"] * named + ["prefix", "trained", "share", "stored"]
    columns += ["best step", "validation loss"]
    groups = [("training", len(columns))]
    splits: dict[str, list[str]] = {}
    for evaluation in (one for run in runs for one in run.evaluations):
        metrics = splits.setdefault(evaluation.split, [])
        metrics += [name for name in evaluation.scores if name not in metrics]
    for split, metrics in splits.items():
        own = ["loss", "perplexity", *(NAMES.get(name, name) for name in metrics)]
        own += ["sources"]
        columns += own
        groups.append((split, len(own)))

    rows = []
    for run in runs:
        main = "none" if run.alone else "best"
        for which in dict.fromkeys([main, *(one.which for one in run.evaluations)]):
            about = _about(run, which if which != main else None)
            label = evaluation_label(run, which)
            cells = about if named else about[1:]
            for split, metrics in splits.items():
                cells += _values(run, split, which, metrics)
            rows.append((label, cells))
    return Table("run", columns, rows), groups


def detail_tables(runs: Sequence[Run]) -> Iterator[tuple[str, Table]]:
    """Tables of the evaluations that have subsets or classes, with their captions."""
    if asked := [
        (f"{evaluation_label(run, one.which)}, {one.split}", [show_settings(one)])
        for run in runs
        for one in run.evaluations
        if one.settings
    ]:
        yield (
            "How they were scored, where not by default",
            Table("run", ["with"], asked),
        )
    for run in runs:
        for one in run.evaluations:
            where = f"{evaluation_label(run, one.which)}, {one.split}"
            if len(one.subsets) > 1:
                yield f"{where}: subsets", subset_table(one)
            if one.classes is not None:
                yield f"{where}: classes", class_table(one.classes)
                if len(one.classes.labels) <= LARGEST_TABLE:
                    counts = confusion_table(one.classes)
                    yield f"{where}: confusion, in sources", counts


def _about(run: Run, other: str | None) -> list[str]:
    """Cells on what was trained; `other`: the evaluation is not of the run's best."""
    if run.alone or other == "none":
        return [LABELS["none"], NOTHING, "0", "0.00%", "0", NOTHING, NOTHING]
    if other not in (None, "last"):  # a stored prefix, of which the run says nothing
        return [NOTHING] * 7
    step, loss = run.best or (None, None)
    if run.best is None and run.row:
        step, loss = run.row.get("step"), run.row.get("validation_loss")
    hidden = other is not None
    return [
        LABELS.get(run.method, run.method) or NOTHING,
        _prefix(run),
        NOTHING if run.trained is None else f"{run.trained:,}",
        NOTHING if run.share is None else f"{run.share:.2%}",
        NOTHING if run.stored is None else show_size(run.stored),
        NOTHING if step is None or hidden else f"{step:,}",
        NOTHING if loss is None or hidden else f"{loss:.4f}",
    ]


def _prefix(run: Run) -> str:
    """Kind and length, and what is unusual of it."""
    own = run.config.get("prefix")
    if run.method != "prefix" or not own:
        return NOTHING
    length = own.get("lengths") or own.get("length")
    words = [str(own.get("kind")), "" if length is None else setting(length)]
    words += ["infix"] if own.get("placement") == "infix" else []
    words += ["gated"] if own.get("gate") else []
    words += [f"layers {setting(own['layers'])}"] if own.get("layers") else []
    return ", ".join(word for word in words if word)


def _values(run: Run, split: str, which: str, metrics: Sequence[str]) -> list[str]:
    for one in run.evaluations:
        if (one.split, one.which) == (split, which):
            return [
                f"{one.loss:.4f}" if one.has_loss else NOTHING,
                f"{one.perplexity:,.3f}" if one.has_loss else NOTHING,
                *(_score(one, name) for name in metrics),
                f"{one.sources:,}",
            ]
    return [NOTHING] * (len(metrics) + 3)


def _score(one: Evaluation, name: str) -> str:
    value = one.scores.get(name)
    if value is None or math.isnan(value):
        return NOTHING
    return show_value(name, value)
