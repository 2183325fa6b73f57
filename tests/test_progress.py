"""What a log file shows of a training run."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from prefix_jax.runs import progress
from prefix_jax.runs.progress import TrainingProgress, counting


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


@pytest.mark.parametrize("terminal", [False, True])
def test_a_count_is_a_bar_on_a_terminal_and_nothing_off_it(terminal):
    def shown(use):
        file = io.StringIO()
        console = Console(file=file, width=120, force_terminal=terminal)
        use(console)
        return file.getvalue()

    def alone(console):
        with counting("loss on test", 2, console) as count:
            count(1)

    def while_training(console):
        with (
            TrainingProgress("prefix", 50, 0, console) as bar,
            bar.counting("validation", 2) as count,
        ):
            count(1)

    assert ("loss on test" in shown(alone)) == terminal
    assert ("validation" in shown(while_training)) == terminal
    if not terminal:
        assert shown(alone).strip() == shown(while_training).strip() == ""
