"""What goes wrong while a run trains: steps that are not finite, spikes, hangs."""

import contextlib
import faulthandler
import json
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prefix_jax.config import TrainConfig
from prefix_jax.errors import InputError, first_line
from prefix_jax.learning.split import finite
from prefix_jax.runs.prepare import Setup
from prefix_jax.storage.files import write_text

MOST_IN_A_ROW = 10
"""Steps that `on_nonfinite="skip"` passes over, one after the other."""

WINDOW, SPIKE = 50, 8.0
"""A spike is a loss so many robust deviations above the median of the last ones."""

HANGING = 1800
"""Seconds, where several processes wait for each other and the recipe says nothing."""


class Faults:
    """Judges each step's metrics. The step itself has left the state as it was where
    loss or gradient are not finite (`learning.step`)."""

    def __init__(self, setup: Setup, workdir: Path, say: Callable[[str], None]):
        _check_saving(setup.config.train)
        self._setup, self._folder, self.say = setup, workdir / "faults", say
        self.skipped = 0
        """Steps passed over so far, over all calls."""
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def judge(
        self, step: int, values: Mapping[str, float], batch: Mapping[str, np.ndarray]
    ) -> bool:
        """Whether the step counts.

        Raises InputError for one that is not finite where the recipe says stop, and
        after several in a row. Its batch is kept in `workdir/faults`.
        """
        if not values["skipped"]:
            self._in_a_row = 0
            self._watch(step, values["loss"])
            return True
        self.skipped += 1
        self._in_a_row += 1
        try:
            kept = str(self._keep(step, batch))
        except OSError as error:
            kept = f"could not be kept: {first_line(error)}"
        what = (
            f"at step {step} the loss is {values['objective']:g} and the norm of the "
            f"gradient {values['grad_norm']:g}: nothing was learned from this batch "
            f"(its rows: {kept})"
        )
        if self._setup.config.train.on_nonfinite == "stop":
            raise InputError(
                f"{what}. Look at the rows, lower optim.learning_rate (in another "
                "--workdir), or pass over such steps with --train.on-nonfinite skip; "
                "the last checkpoint is whole"
            )
        if self._in_a_row >= MOST_IN_A_ROW:
            raise InputError(
                f"{what}, nor from the {MOST_IN_A_ROW - 1} before: it diverged. Lower "
                "optim.learning_rate and use another --workdir"
            )
        self.say(f"warning: {what}; {self.skipped} such steps so far")
        return False

    def _watch(self, step: int, loss: float) -> None:
        """Say so where a loss stands out; it may be worth a look at the data."""
        if len(self._losses) == WINDOW:
            usual = statistics.median(self._losses)
            deviation = 1.4826 * statistics.median(
                abs(loss - usual) for loss in self._losses
            )
            if deviation and loss > usual + SPIKE * deviation:
                self.say(
                    f"step {step:>6}  loss {loss:.4f} is a spike: the last {WINDOW} "
                    f"had {usual:.4f}, give or take {deviation:.4f}"
                )
        self._losses.append(loss)

    def _keep(self, step: int, batch: Mapping[str, np.ndarray]) -> Path:
        """The batch as JSONL, a row with its text on each line."""
        which = f".process_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._folder / f"step_{step:06}{which}.jsonl"
        lines = []
        for row in range(len(batch["tokens"])):
            values = {name: array[row].tolist() for name, array in batch.items()}
            text = self._setup.tokenizer.decode(
                batch["tokens"][row][batch["mask"][row]]
            )
            lines.append(
                json.dumps({"text": text, **values}, ensure_ascii=False) + "\n"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines))
        return path


class Watchdog:
    """Context in which a process that makes no progress says where it stands and ends.

    The stacks of all its threads go to standard error, and its status is 1. It also
    works where Python does not run, as inside a collective that waits for a process.
    """

    def __init__(self, config: TrainConfig):
        self._seconds = config.watchdog
        if self._seconds is None and jax.process_count() > 1:
            self._seconds = HANGING

    def __enter__(self) -> "Watchdog":
        self.feed()
        return self

    def __exit__(self, *_) -> None:
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def feed(self) -> None:
        """There was progress: start to count anew."""
        if self._seconds is not None:
            # Python's own, whatever a test has put in the place of sys.stderr.
            faulthandler.dump_traceback_later(
                self._seconds, exit=True, file=sys.__stderr__ or sys.stderr
            )


def check_finite(step: int, trained: Any, home: object) -> None:
    """InputError for a pytree that is trained with NaN or infinity in it.

    `home`: where the checkpoints are.
    """
    if not finite(trained):
        raise InputError(
            f"at step {step} what is trained is NaN or infinite: it diverged; lower "
            "optim.learning_rate and use another --workdir. The checkpoint before is "
            f"kept in {home}"
        )


def _check_saving(config: TrainConfig) -> None:
    """InputError where several processes are to go on after what cannot be written."""
    if config.on_save_error == "continue" and jax.process_count() > 1:
        raise InputError(
            'train.on_save_error is "continue", but several processes train: where the '
            'first cannot write, the others would wait for it; use "stop"'
        )


@contextlib.contextmanager
def saving(
    config: TrainConfig, say: Callable[[str], None], must: bool = False
) -> Iterator[None]:
    """Context of what is written to the disk, and may fail: see `on_save_error`.

    `must`: a failure ends the run, whatever the recipe says.
    """
    try:
        yield
    except OSError as error:
        if must or config.on_save_error == "stop":
            raise
        say(f"warning: not saved ({first_line(error)}); training goes on")
