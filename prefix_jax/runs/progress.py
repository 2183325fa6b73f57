"""The progress bars of runs; off a terminal there is none."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10
"""Off a terminal a line is printed once in so many seconds."""


def screen() -> Console:
    """Where a run tells of itself: nowhere in all but the first of its processes."""
    return Console(quiet=jax.process_index() > 0)


class TrainingProgress:
    """A bar with loss, tokens per second and time left.

    Off a terminal, in a log file say, it is a plain line of these every ten seconds.
    """

    def __init__(self, label: str, steps: int, start: int, console: Console):
        self.console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            label, total=steps, completed=start, loss="", rate=""
        )
        self._steps = steps
        self._printed = time.monotonic()
        self._first: float | None = None
        self._paused = 0.0
        self._tokens = 0

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def step(self, step: int, loss: float, tokens: int) -> None:
        """One step is done; `tokens` real tokens went through the model."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._paused = now, 0.0
        else:
            self._tokens += tokens
        shown = f"loss {loss:.3f}"
        rate = "" if self.rate is None else f"{self.rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, loss=shown, rate=rate)
        if not self.console.is_terminal and now - self._printed >= LINE_SECONDS:
            self.say(f"step {step:>6} of {self._steps}  {shown}  {rate}")
            self._printed = now

    @contextlib.contextmanager
    def counting(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar below, as `counting`, for something on the way."""
        task = self._bar.add_task(label, total=total, loss="", rate="")
        try:
            yield lambda done: self._bar.advance(task, done)
        finally:
            self._bar.remove_task(task)

    def pause(self, seconds: float) -> None:
        """Time that was not spent on steps (validation, saving)."""
        self._paused += seconds

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def rate(self) -> float | None:
        """Real tokens per second of this call's steps after its first, which compiles.

        None as long as there is none.
        """
        if self._first is None or not self._tokens:
            return None
        spent = time.monotonic() - self._first - self._paused
        return self._tokens / max(spent, 1e-9)


@contextlib.contextmanager
def counting(
    label: str, total: int, console: Console
) -> Iterator[Callable[[int], None]]:
    """A bar that goes when it is done; the function yielded hears of progress."""
    with Progress(
        *Progress.get_default_columns(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
