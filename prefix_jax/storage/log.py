"""The numbers of a run: `metrics.jsonl`, TensorBoard if asked for, and a picture.

    {"step": 10, "split": "train", "loss": 2.31, "learning_rate": 0.0098, ...}
    {"step": 100, "split": "validation", "loss": 1.97, "perplexity": 7.17}

Numbers are finite or null. `loss` is in nats per target token.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeGuard

import numpy as np

from prefix_jax.errors import InputError
from prefix_jax.json_text import parse
from prefix_jax.storage.files import write_text
from prefix_jax.storage.pictures import COLOURS, GREY, chart

Split = Literal["train", "validation"]
Line = dict[str, Any]

_NAME = "metrics.jsonl"
_LARGEST = float(np.finfo(np.float32).max)  # what is measured is f32


class MetricsLog:
    """Appends to `workdir/metrics.jsonl` (and TensorBoard's files beside it).

    A line is on its way to the disk when `write` returns; a line that a killed process
    left unfinished is dropped.
    """

    def __init__(self, workdir: Path, *, tensorboard: bool = False):
        """Opens the file. InputError if TensorBoard is asked for and not installed."""
        self._path = Path(workdir) / _NAME
        self._board = _Board(Path(workdir) / "tensorboard") if tensorboard else None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite(_parse(self._path))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, split: Split, values: Mapping[str, float | int]) -> None:
        """One line; NaN and infinity become null."""
        numbers = {name: _number(value) for name, value in values.items()}
        line = {"step": step, "split": split, **numbers}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._board is not None:
            self._board.write(step, split, numbers)

    def flush(self) -> None:
        """Block until everything written so far is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def truncate_after(self, step: int) -> None:
        """Forget the lines of later steps, which a resumed run will write again."""
        self._file.close()
        lines = _parse(self._path)
        self._rewrite(line for line in lines if line["step"] <= step)
        if self._board is not None:
            self._board.restart(step)

    def _rewrite(self, lines: Iterator[Line]) -> None:
        """Replace the file by these lines, whole or not at all, and open it."""
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = self._path.open("a", encoding="utf-8", buffering=1)


def read_metrics(workdir: Path) -> list[Line]:
    """Every line of `workdir/metrics.jsonl`, in order; [] if there is no such file.

    Raises InputError for a line that is not one of ours, naming it.
    """
    return list(_parse(Path(workdir) / _NAME))


def plot_curves(
    runs: Path | Mapping[str, Path], path: Path | None = None
) -> Path | None:
    """Draw loss by step; returns the picture's path, None if nothing was logged.

    `runs` is a workdir, whose picture is `curves.png` in it, or {label: workdir} for
    several runs in one picture at `path`. Training loss is drawn thin, with its moving
    average (of n points over sqrt(n)) thick; validation as points.
    """
    if isinstance(runs, Mapping):
        workdirs = dict(runs)
        if path is None:
            raise InputError("several runs are one picture: say where with `path`")
    else:
        workdirs, path = {"": Path(runs)}, path or Path(runs) / "curves.png"
    logs = {label: read_metrics(workdir) for label, workdir in workdirs.items()}
    if not any(logs.values()):
        return None
    with chart(path) as axes:
        for colour, (label, log) in zip(
            itertools.cycle(COLOURS), logs.items(), strict=False
        ):
            _draw_loss(axes, log, label, colour)
        _finish(axes, several=len(logs) > 1)
    return path


def _draw_loss(axes, log: Sequence[Line], label: str, colour: str) -> None:
    steps, loss = _series(log, "train", "loss")
    window = math.isqrt(len(loss)) | 1  # odd, so that it is centred
    axes.plot(steps, loss, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, moving_average(loss, window), color=colour, linewidth=1.8)
    steps, loss = _series(log, "validation", "loss")
    axes.plot(
        steps,
        loss,
        "o--",
        color=colour,
        linewidth=1,
        markersize=6,
        markeredgecolor="white",
    )
    axes.plot([], [], color=colour, linewidth=4, label=label)  # for the legend


def _finish(axes, *, several: bool) -> None:
    colour = GREY if several else COLOURS[0]
    runs = axes.get_legend_handles_labels() if several else ([], [])
    (smooth,) = axes.plot([], [], color=colour, linewidth=1.8)
    (points,) = axes.plot(
        [], [], "o--", color=colour, linewidth=1, markeredgecolor="white"
    )
    axes.legend(
        [*runs[0], smooth, points],
        [*runs[1], "training (moving average)", "validation"],
        frameon=False,
    )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per target token)")


def _series(
    log: Sequence[Line], split: Split, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, without the nulls."""
    pairs = [
        (line["step"], line[name])
        for line in log
        if line["split"] == split and line.get(name) is not None
    ]
    array = np.array(pairs, float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Centred; near the ends over the values that are there."""
    if not len(values):
        return values
    ones = np.ones(window)
    count = np.convolve(np.ones(len(values)), ones, mode="same")
    return np.convolve(values, ones, mode="same") / count


def _number(value: float | int) -> float | int | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _parse(path: Path) -> Iterator[Line]:
    """The lines of a metrics file, without a last one that has no end."""
    if not path.exists():
        return
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, text in enumerate(texts, 1):
        try:
            line = parse(text)
        except ValueError:
            line = None
        if not _is_ours(line):
            raise InputError(
                f'{path}, line {number}: expected {{"step": ..., "split": ..., ...}}, '
                f"found {text[:80]!r}; mend or remove the line"
            )
        yield line


def _is_ours(line: object) -> TypeGuard[Line]:
    """Whether a line names step and split, and all else are numbers or null."""
    if not isinstance(line, dict):
        return False
    step, split = line.get("step"), line.get("split")
    if type(step) is not int or not 0 <= step < 2**63 or not isinstance(split, str):
        return False
    numbers = [value for name, value in line.items() if name != "split"]
    return all(
        value is None or (type(value) in (int, float) and abs(value) <= _LARGEST)
        for value in numbers
    )


class _Board:
    """TensorBoard's event files, written by tensorboardX."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "train.tensorboard needs tensorboardX, which is not installed; "
                "pip install 'prefix-jax[tensorboard]', or leave the option out "
                "(metrics.jsonl holds the same numbers)"
            ) from error
        self._folder, self._new = folder, SummaryWriter
        self._writer = None
        self._purge_from: int | None = None

    def write(self, step: int, split: str, numbers: Mapping[str, float | None]) -> None:
        if self._writer is None:
            start = self._purge_from
            self._writer = self._new(
                str(self._folder),
                purge_step=start,
                # Names hold the second: a file opened in the same one would be lost.
                filename_suffix="" if start is None else f".from{start}",
            )
        for name, value in numbers.items():
            if value is not None:
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def restart(self, step: int) -> None:
        """Hide what earlier files say of the steps after `step`."""
        self.close()
        self._purge_from = step + 1

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
