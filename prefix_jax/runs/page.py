"""What `report`'s page shows of runs: tables, samples and what is missing."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefix_jax.config import Config
from prefix_jax.runs.compare import LABELS, show_size
from prefix_jax.runs.evaluation import (
    LARGEST_TABLE,
    Evaluation,
    Table,
    class_table,
    confusion_table,
    subset_table,
)
from prefix_jax.runs.folders import Run, Written
from prefix_jax.runs.samples import spread
from prefix_jax.scoring.metrics import NAMES, show

NOTHING = "–"
"""Stands for a value that is not there."""


@dataclasses.dataclass(frozen=True)
class Missing:
    """What a run lacks, and the command that makes it."""

    label: str
    what: str
    command: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """One source, what each run wrote for it, and what was expected."""

    source: str
    texts: Sequence[tuple[str, str]]
    """(label, text)."""
    references: Sequence[str]


@dataclasses.dataclass(frozen=True)
class SampleGroup:
    """Samples of runs that wrote for the same sources of a split."""

    split: str
    labels: Sequence[str]
    sources: int
    """Those that all of them wrote for."""
    samples: Sequence[Sample]


def missing(runs: Sequence[Run]) -> Iterator[Missing]:
    """What the runs lack that the page would show."""
    for run in runs:
        train = "the command that started it"
        if not run.alone and run.folder.is_dir():
            if not run.config:
                yield Missing(run.label, "no config.json: its settings", train)
            if not run.log:
                yield Missing(run.label, "no metrics.jsonl: its curves", train)
            if run.left is not None and run.log:
                done, wanted = run.left
                what = f"interrupted: logged to step {done:,} of {wanted:,}"
                yield Missing(run.label, what, f"{train}, once more, goes on")
        if not run.evaluations:
            command = f"prefix-jax evaluate --workdir {run.folder}"
            if run.alone:
                command = "the same prefix-jax compare, once more"
            yield Missing(run.label, "not evaluated: its scores and texts", command)


def scores(runs: Sequence[Run]) -> tuple[Table, list[tuple[str, int]]]:
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
            label = run.label
            if which != main:
                label += f": {LABELS.get(which, which)}"
            cells = about if named else about[1:]
            for split, metrics in splits.items():
                cells += _values(run, split, which, metrics)
            rows.append((label, cells))
    return Table("run", columns, rows), groups


def details(runs: Sequence[Run]) -> Iterator[tuple[str, Table]]:
    """Tables of the evaluations that have subsets or classes, with their captions."""
    for run in runs:
        for one in run.evaluations:
            where = f"{run.label}, {one.split}"
            if one.which not in ("best", "none"):
                where += f", {one.which}"
            if one.which == "none" and not run.alone:
                where += ", backbone alone"
            if len(one.subsets) > 1:
                yield f"{where}: subsets", subset_table(one)
            if one.classes is not None:
                yield f"{where}: classes", class_table(one.classes)
                if len(one.classes.labels) <= LARGEST_TABLE:
                    counts = confusion_table(one.classes)
                    yield f"{where}: confusion, in sources", counts


def validations(runs: Sequence[Run]) -> Table | None:
    """The points of the chart in numbers: a row a step; None if there are none."""
    found = {run.label: dict(run.losses("validation")) for run in runs}
    found = {label: losses for label, losses in found.items() if losses}
    steps = sorted({step for losses in found.values() for step in losses})
    rows = [
        (
            f"{step:,}",
            [
                f"{losses[step]:.4f}" if step in losses else NOTHING
                for losses in found.values()
            ],
        )
        for step in steps
    ]
    return Table("step", list(found), rows) if rows else None


def samples(runs: Sequence[Run], number: int) -> list[SampleGroup]:
    """For each split, sources that all runs (of the same data) wrote for."""
    groups: list[tuple[str, dict[str, Written]]] = []
    for run in runs:
        for one in run.evaluations:
            written = run.written(one)
            if not written:
                continue
            label = run.label
            if one.which != ("none" if run.alone else "best"):
                label += f": {LABELS.get(one.which, one.which)}"
            for split, group in groups:
                if split == one.split and _common([*group.values(), written]):
                    group[label] = written
                    break
            else:
                groups.append((one.split, {label: written}))
    found = []
    for split, group in groups:
        common = _common([*group.values()])
        first = next(iter(group.values()))
        chosen = [
            Sample(
                source,
                [(label, _text(own[source])) for label, own in group.items()],
                first[source]["references"],
            )
            for source in spread(common, number)
        ]
        found.append(SampleGroup(split, list(group), len(common), chosen))
    return found


def settings(runs: Sequence[Run]) -> tuple[Table | None, Table | None]:
    """(what differs between the runs, or from the defaults where one is; all)."""
    flat = {run.label: _flat(run) for run in runs if run.config}
    if not flat:
        return None, None
    names = list(dict.fromkeys(name for own in flat.values() for name in own))
    default = _flattened(Config().to_dict())

    def table(chosen: Sequence[str]) -> Table:
        rows = [
            (name, [own.get(name, NOTHING) for own in flat.values()]) for name in chosen
        ]
        return Table("setting", list(flat), rows)

    def differs(name: str) -> bool:
        values = {own.get(name) for own in flat.values()}
        if len(flat) == 1:
            return name in default and values != {default[name]}
        return len(values) > 1

    return table([name for name in names if differs(name)]), table(names)


def versions(runs: Sequence[Run]) -> Table | None:
    """Libraries and devices of each run's last call."""
    calls = {
        run.label: run.record["calls"][-1] for run in runs if run.record.get("calls")
    }
    if not calls:
        return None
    flat = {
        label: {**call.get("versions", {}), "devices": _value(call.get("devices"))}
        for label, call in calls.items()
    }
    if len({json.dumps(own) for own in flat.values()}) == 1:
        flat = {"all runs": next(iter(flat.values()))}
    names = list(dict.fromkeys(name for own in flat.values() for name in own))
    rows = [(name, [own.get(name, NOTHING) for own in flat.values()]) for name in names]
    return Table("library", list(flat), rows)


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
    words = [str(own.get("kind")), "" if length is None else _value(length)]
    words += ["infix"] if own.get("placement") == "infix" else []
    words += ["gated"] if own.get("gate") else []
    words += [f"layers {_value(own['layers'])}"] if own.get("layers") else []
    return ", ".join(word for word in words if word)


def _values(run: Run, split: str, which: str, metrics: Sequence[str]) -> list[str]:
    for one in run.evaluations:
        if (one.split, one.which) == (split, which):
            return [
                f"{one.loss:.4f}",
                f"{one.perplexity:.3f}",
                *(_score(one, name) for name in metrics),
                f"{one.sources:,}",
            ]
    return [NOTHING] * (len(metrics) + 3)


def _score(one: Evaluation, name: str) -> str:
    value = one.scores.get(name)
    if value is None:
        return NOTHING
    return show(name, value).split()[-1] if name in NAMES else f"{value:.3f}"


def _common(written: Sequence[Written]) -> list[str]:
    """Sources that all have, in the order of the first."""
    first, *others = written
    return [source for source in first if all(source in own for own in others)]


def _text(line: Mapping[str, Any]) -> str:
    """What was written; of a class also how likely it was."""
    found = line.get("probabilities")
    return line["text"] + (f" ({max(found):.3f})" if found else "")


def _flat(run: Run) -> dict[str, str]:
    prints = {"fingerprint": run.record.get("fingerprints", {})}
    return _flattened({**run.config, **prints})


def _flattened(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"{section}.{name}": _value(value)
        for section, fields in sections.items()
        for name, value in fields.items()
    }


def _value(value: Any) -> str:
    """A setting as one would write it after its option."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "()"
    return str(value)
