"""What `report`'s page shows of runs: samples, settings, and what is missing."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefix_jax.checks import words
from prefix_jax.config import Config
from prefix_jax.runs.compare import LABELS
from prefix_jax.runs.evaluation import Table
from prefix_jax.runs.folders import Run, Written
from prefix_jax.runs.samples import spread

NOTHING = "–"
"""Stands for a value that is not there."""


@dataclasses.dataclass(frozen=True)
class Missing:
    """What a run lacks, and what makes it."""

    label: str
    what: str
    remedy: str


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


def evaluation_label(run: Run, which: str) -> str:
    """The run's label; of an evaluation that is not of its best also what it is of."""
    if which == ("none" if run.alone else "best"):
        return run.label
    return f"{run.label}: {LABELS.get(which, which)}"


def setting(value: Any) -> str:
    """A setting as one would write it after its option."""
    return " ".join(words(value)) or "()"


def missing(runs: Sequence[Run]) -> Iterator[Missing]:
    """What the runs lack that the page would show."""
    train = "the prefix-jax train that started it, once more"
    compare = "the same prefix-jax compare, once more"
    for run in runs:
        folder = run.folder
        if not folder.is_dir():
            what = f"{folder} is not there: curves, texts and settings"
            yield Missing(run.label, what, compare)
        elif not run.alone:
            if not run.config:
                yield Missing(run.label, "no config.json: settings", train)
            if not run.log:
                yield Missing(run.label, "no metrics.jsonl: curves", train)
            elif run.left is not None:
                done, wanted = run.left
                what = f"not at its end: step {done:,} of {wanted:,} is the last logged"
                yield Missing(run.label, what, train)
        if not run.evaluations:
            evaluate = f"prefix-jax evaluate --workdir {shlex.quote(str(folder))}"
            what = "not evaluated: scores and texts"
            yield Missing(run.label, what, compare if run.alone else evaluate)


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
            label = evaluation_label(run, one.which)
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
        label: {**call.get("versions", {}), "devices": setting(call.get("devices"))}
        for label, call in calls.items()
    }
    if len({json.dumps(own) for own in flat.values()}) == 1:
        flat = {"all runs": next(iter(flat.values()))}
    names = list(dict.fromkeys(name for own in flat.values() for name in own))
    rows = [(name, [own.get(name, NOTHING) for own in flat.values()]) for name in names]
    return Table("library", list(flat), rows)


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
        f"{section}.{name}": setting(value)
        for section, fields in sections.items()
        for name, value in fields.items()
    }
