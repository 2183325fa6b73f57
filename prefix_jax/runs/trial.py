"""A run from its first step to its scores."""

import dataclasses
import time
from pathlib import Path

from rich.console import Console

from prefix_jax.data_config import Split
from prefix_jax.runs.evaluate import score
from prefix_jax.runs.evaluation import Evaluation, write_evaluation
from prefix_jax.runs.prepare import Setup
from prefix_jax.runs.result import Outcome, load_result
from prefix_jax.runs.train import train_prepared
from prefix_jax.runs.validate import Written


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was trained and how good it is."""

    outcome: Outcome
    scores: Evaluation
    """Of the checkpoint with the lowest validation loss."""
    written: Written
    scoring_seconds: float


def run_trial(
    setup: Setup, workdir: Path, split: Split, limit: int | None, console: Console
) -> Trial | None:
    """Train in `workdir`, or go on there, and score the best checkpoint on `split`.

    Writes what `train` and `write_evaluation` do. `limit`: score the first so many
    sources only. None if training was interrupted.
    """
    outcome = train_prepared(setup, workdir, console)
    if not outcome.finished:
        return None
    started = time.monotonic()
    backbone, prefix = load_result(workdir / "best", setup)
    scores, written = score(setup, backbone, prefix, split, "best", limit, console)
    write_evaluation(workdir, scores, written)
    return Trial(outcome, scores, written, time.monotonic() - started)
