"""What a log file shows of a training run."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from prefix_jax.runs import progress
from prefix_jax.runs.progress import TrainingProgress


@pytest.mark.parametrize("terminal", [False, True])
def test_off_a_terminal_there_is_a_line_every_ten_seconds(monkeypatch, terminal):
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(progress, "time", clock)
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=terminal)
    with TrainingProgress("prefix", 50, 0, console) as bar:
        for step in range(1, 51):
            now += 0.5
            bar.step(step, loss=2.0, tokens=100)
    lines = [line for line in file.getvalue().splitlines() if line.startswith("step")]
    if terminal:
        assert not lines
    else:
        assert lines == [
            "step     20 of 50  loss 2.000  200 tokens/s",
            "step     40 of 50  loss 2.000  200 tokens/s",
        ]
