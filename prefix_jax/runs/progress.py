"""The progress bar of a training run."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class TrainingProgress:
    """A bar with loss, tokens per second and time left; plain lines off a terminal."""

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
        self._started = time.monotonic()
        self._paused = 0.0
        self._tokens = 0

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def step(self, step: int, loss: float, tokens: int) -> None:
        """One step is done; `tokens` real tokens went through the model."""
        self._tokens += tokens
        self._bar.update(
            self._task,
            completed=step,
            loss=f"loss {loss:.3f}",
            rate=f"{self.rate:,.0f} tokens/s",
        )

    def pause(self, seconds: float) -> None:
        """Time that was not spent on steps (validation, saving)."""
        self._paused += seconds

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def rate(self) -> float:
        """Real tokens per second of training since the start of this call."""
        spent = time.monotonic() - self._started - self._paused
        return self._tokens / max(spent, 1e-9)
