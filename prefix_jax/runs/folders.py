"""What run folders hold, read for `report`; nothing in them is changed.

A run may lack any of its files: it was interrupted, or is not evaluated yet.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax

from prefix_jax.checks import Bounds, NotNegative, check
from prefix_jax.config import FIELDS
from prefix_jax.errors import InputError
from prefix_jax.json_text import parse
from prefix_jax.learning.split import count
from prefix_jax.model.families import random_backbone
from prefix_jax.model.loading import load_config
from prefix_jax.model.tensor_files import read_json
from prefix_jax.runs.compare import LABELS
from prefix_jax.runs.evaluation import Evaluation
from prefix_jax.runs.record import read_record
from prefix_jax.runs.result import stored_bytes
from prefix_jax.storage.checkpoint_record import trained_numbers
from prefix_jax.storage.log import Line, read_metrics
from prefix_jax.storage.metadata import holds_prefix, read_metadata, read_shape

Written = dict[str, dict[str, Any]]
"""By source, a line of outputs_*.jsonl: source, text, references, perhaps
probabilities."""

COMPARISON, SWEEP = "comparison.json", "sweep.json"
_ROW = {
    "trained": Annotated[int, Bounds(least=0, most=2**63)],
    "stored_bytes": Annotated[int, Bounds(least=0, most=2**63)],
    "share": float,
    "step": NotNegative,
    "validation_loss": float,
}
"""Values of a comparison's row that are shown, where they are not null."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, or the backbone alone where a comparison scored it."""

    label: str
    folder: Path
    row: Mapping[str, Any]
    """Of comparison.json; empty outside a comparison."""

    @property
    def alone(self) -> bool:
        """Whether nothing was trained."""
        return self.row.get("method") == "none"

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """config.json; empty where there is none."""
        path = self.folder / "config.json"
        record = read_record(self.folder) if path.is_file() else {}
        train = record.get("config", {}).get("train", {})
        for name in ("method", "steps", "patience"):
            if train.get(name) is not None:
                check(f"{path}: train.{name}", train[name], FIELDS[f"train.{name}"])
        return record

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The resolved recipe by section; empty where it was not recorded."""
        return self.record.get("config", {})

    @property
    def method(self) -> str:
        """`prefix`, `top2`, `full`, or `none`; empty where nothing says."""
        return self.row.get("method") or self.config.get("train", {}).get("method", "")

    @functools.cached_property
    def log(self) -> list[Line]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.folder)

    def losses(self, split: str) -> list[tuple[int, float]]:
        """(step, loss) of each line of a split that has a loss."""
        return [
            (line["step"], line["loss"])
            for line in self.log
            if line["split"] == split and line.get("loss") is not None
        ]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the lowest validation, the first where several are."""
        return min(self.losses("validation"), key=lambda one: one[1], default=None)

    @property
    def left(self) -> tuple[int, int] | None:
        """Steps done and wanted, where the run has not reached its end."""
        train = self.config.get("train", {})
        wanted, patience = train.get("steps"), train.get("patience")
        if wanted is None or self.alone:
            return None
        if patience is not None and self.best is not None:
            later = [line for line in self.log if line["step"] > self.best[0]]
            if sum(line["split"] == "validation" for line in later) >= patience:
                return None
        done = max((line["step"] for line in self.log), default=0)
        # The last steps are in the log only where log_every divides them, but the
        # validation at the end always is.
        return (done, wanted) if done < wanted else None

    @functools.cached_property
    def evaluations(self) -> list[Evaluation]:
        """Of scores_*.json, by name; else what comparison.json says."""
        paths = sorted(self.folder.glob("scores_*.json"))
        if paths:
            return [_evaluation(path, read_json(path)) for path in paths]
        if self.row.get("scores"):
            return [_evaluation(self.folder.parent / COMPARISON, self.row["scores"])]
        return []

    def written(self, evaluation: Evaluation) -> Written:
        """The texts of an evaluation; empty where there are none."""
        name = f"outputs_{evaluation.split}_{evaluation.which}.jsonl"
        return read_written(self.folder / name)

    @functools.cached_property
    def trained(self) -> int | None:
        """Numbers trained."""
        if "trained" in self.row:
            return self.row["trained"]
        return trained_numbers(self.folder)

    @functools.cached_property
    def share(self) -> float | None:
        """`trained` over the backbone's parameters."""
        if "share" in self.row:
            return self.row["share"]
        whole = self._backbone_size
        return None if whole is None or self.trained is None else self.trained / whole

    @property
    def stored(self) -> int | None:
        """Bytes that the task adds on disk."""
        if (self.folder / "best").is_dir():
            return stored_bytes(self.folder / "best")
        return self.row.get("stored_bytes")

    @property
    def _backbone_size(self) -> int | None:
        """Parameters of a backbone of the shape that `best` describes."""
        best = self.folder / "best"
        if holds_prefix(best):
            shape = read_shape(best, read_metadata(best))
        elif (best / "config.json").is_file():
            shape = load_config(best)
        else:
            return None
        return count(
            jax.eval_shape(lambda: random_backbone(shape, key=jax.random.key(0)))
        )


def find_runs(given: Sequence[str]) -> list[Run]:
    """The runs of folders, each `FOLDER` or `NAME=FOLDER`.

    A comparison and a sweep have several each. A run is called after its folder (a
    sweep's after its settings), or after its method in a comparison; runs that
    would be called alike get their parents' names too.
    Raises InputError for a folder that holds none.
    """
    found: list[tuple[list[str], Path, Mapping[str, Any]]] = []
    for one in given:
        name, separator, path = one.partition("=")
        if not separator or Path(one).exists():
            name, path = "", one
        folder = Path(path)
        parts = [name] if name else list(folder.absolute().parts[1:])
        cells = _cells(folder)
        found += [([*parts, cell.name], cell, {}) for cell in cells]
        if cells:
            continue
        methods = _methods(folder)
        for method, row in methods.items():
            inner = folder / method
            # Without a given name, the method says enough until two are alike.
            found.append(([*parts, LABELS.get(method, method)], inner, row))
        if not methods:
            _check_run(folder)
            found.append((parts, folder, {}))
    if not found:
        raise InputError(
            "report needs the folder of a run or of a comparison: "
            "prefix-jax report runs/mine"
        )
    folders = [folder.resolve() for _, folder, _ in found]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(f"{folder} was given twice; give each run once")
    labels = _labels([parts for parts, _, _ in found])
    return [
        Run(label, folder, row)
        for label, (_, folder, row) in zip(labels, found, strict=True)
    ]


def read_written(path: Path) -> Written:
    """The lines of an outputs or samples file by source; empty if it is not there.

    Raises InputError for a line that is not one of ours.
    """
    if not path.is_file():
        return {}
    found: Written = {}
    # A line ends with "\n" only: texts may hold other line ends.
    whole = path.read_text(encoding="utf-8", errors="replace")
    for number, text in enumerate(whole.split("\n"), 1):
        if not text:
            continue
        try:
            line = parse(text)
            _check_written(line)
            found[line["source"]] = line
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f'{path}, line {number}: expected {{"source": ..., "text": ..., '
                f'"references": ...}}, found {text[:80]!r}; remove the file, or '
                "evaluate again"
            ) from None
    return found


def _check_written(line: Mapping[str, Any]) -> None:
    """KeyError, TypeError or ValueError unless a line is one of ours."""
    for name in ("source", "text"):
        check(name, line[name], str)
    if not isinstance(line["references"], list):
        raise TypeError("no list")
    check("references", tuple(line["references"]), tuple[str, ...])
    if line.get("probabilities") is not None:
        check("probabilities", tuple(line["probabilities"]), tuple[float, ...])


def _cells(folder: Path) -> list[Path]:
    """The folders of a sweep's runs, in its order, as far as they hold one."""
    if not (path := folder / SWEEP).is_file():
        return []
    try:
        names = [cell["folder"] for cell in read_json(path)["cells"]]
        if not names or any(
            Path(name).name != name or name in ("", "..") for name in names
        ):
            raise ValueError("no names of folders")
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is not what `prefix-jax sweep` writes; run it again, or give the "
            "folders of the runs"
        ) from None
    return [folder / name for name in names if _holds_run(folder / name)]


def _methods(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The rows of a comparison by method; of one without its end, what is there."""
    path = folder / COMPARISON
    if not path.is_file():
        if (folder / "config.json").is_file():
            return {}
        inner = [method for method in LABELS if _holds_run(folder / method)]
        return {method: {"method": method} for method in inner}
    try:
        rows = parse(path.read_text(encoding="utf-8"))
        for row in rows:
            _check_row(row)
        return {row["method"]: row for row in rows}
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is not what `prefix-jax compare` writes; run it again, or give "
            "the folders of the runs"
        ) from None


def _check_row(row: Mapping[str, Any]) -> None:
    """KeyError, TypeError or ValueError unless it is a row of a comparison."""
    if row["method"] not in list(LABELS):  # which is a folder's name, too
        raise ValueError("no method")
    for name, hint in _ROW.items():
        if row.get(name) is not None:
            check(name, row[name], hint)
    if row.get("scores"):
        Evaluation.from_dict(row["scores"])


def _holds_run(folder: Path) -> bool:
    return folder.is_dir() and (
        (
            (folder / "config.json").is_file()
            and "config" in read_json(folder / "config.json")
        )
        or (folder / "metrics.jsonl").is_file()
        or any(folder.glob("scores_*.json"))
    )


def _check_run(folder: Path) -> None:
    if _holds_run(folder):
        return
    above = folder.absolute().parent
    hint = f"; did you mean {folder.parent}?" if _holds_run(above) else ""
    what = "holds no run" if folder.is_dir() else "is no folder"
    raise InputError(
        f"{folder} {what}: expected what `prefix-jax train`, `compare` or `sweep` "
        f"leaves (config.json, metrics.jsonl, scores_*.json, {COMPARISON} or {SWEEP})"
        f"{hint}"
    )


def _labels(parts: Sequence[Sequence[str]]) -> list[str]:
    """The last parts of each, as many as it takes to tell it from the others."""
    labels = []
    for own in parts:
        number = 1
        while number < len(own) and any(
            other is not own and list(other[-number:]) == list(own[-number:])
            for other in parts
        ):
            number += 1
        labels.append(" / ".join(own[-number:]))
    return labels


def _evaluation(path: Path, values: Mapping[str, Any]) -> Evaluation:
    try:
        return Evaluation.from_dict(values)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} is not what this version's `prefix-jax evaluate` writes; "
            "evaluate again"
        ) from None
