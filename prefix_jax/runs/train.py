"""A training run: resumable, watched, its prefix kept.

workdir/
  config.json       the resolved recipe, library versions, backbone fingerprint
  checkpoints/      Orbax: what is trained, optimizer, step, key, data position
  metrics.jsonl     one line per logged step and per validation
  samples.jsonl     texts written at each validation
  best/, last/      the prefix (PEFT layout), or the tuned backbone
  curves.png        loss by step
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from prefix_jax.config import Config
from prefix_jax.data.batches import train_batches
from prefix_jax.learning.optim import make_optimizer, make_schedule
from prefix_jax.learning.split import Params, count, merge, split
from prefix_jax.learning.step import TrainState, init_train_state, make_train_step
from prefix_jax.mesh import put_batch, replicated
from prefix_jax.runs.interrupt import Interrupt
from prefix_jax.runs.prepare import Setup, prepare
from prefix_jax.runs.progress import TrainingProgress
from prefix_jax.runs.record import write_record
from prefix_jax.runs.result import save_result
from prefix_jax.runs.samples import SampleLog
from prefix_jax.runs.validate import Validation, Validator
from prefix_jax.storage.checkpoint import Checkpoints
from prefix_jax.storage.log import MetricsLog, plot_curves


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    best: Validation
    trained: int
    """Numbers trained."""
    share: float
    """Of the backbone's parameters."""
    finished: bool
    """False after Ctrl-C or SIGTERM: the same command goes on from `step`."""


def train(config: Config, workdir: Path, console: Console | None = None) -> Outcome:
    """Train as `config` says, from the last checkpoint in `workdir` if there is one.

    Raises InputError for input that cannot be used, among it a workdir that holds
    a run of another recipe.
    """
    console = console or Console()
    config = config.resolved()
    setup = prepare(config)
    run = _Run(setup, workdir, console)
    # Only now: a mistake that stopped it before must not bind the folder to its recipe.
    write_record(config, setup.fingerprint, workdir)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(workdir, backbone_fingerprint=setup.fingerprint)
        )
        log = stack.enter_context(
            MetricsLog(workdir, tensorboard=config.train.tensorboard)
        )
        outcome = run.go(checkpoints, log)
    if outcome.finished and (picture := plot_curves(workdir)):
        console.print(f"curves: {picture}", highlight=False)
    return outcome


class _Run:
    """The loop and what it carries from step to step."""

    def __init__(self, setup: Setup, workdir: Path, console: Console):
        config = setup.config
        self.setup, self.config = setup, config
        self.workdir, self.console = workdir, console
        self.say: Callable[[str], None] = functools.partial(
            console.print, highlight=False, markup=False, soft_wrap=True
        )

        rows = setup.rows("train")
        held_out = setup.rows("validation")
        params = setup.initial_params(rows)
        trainable, frozen = split(params, config.train.method)
        optimizer = make_optimizer(config.optim, config.train.steps)
        key = jax.random.key(config.train.seed)
        whole = replicated(setup.mesh)
        self.state: TrainState = jax.device_put(
            init_train_state(trainable, optimizer, key), whole
        )
        self.frozen: Params = jax.device_put(frozen, whole)
        self.step = make_train_step(optimizer, config.train, setup.mesh)
        self.schedule = make_schedule(config.optim, config.train.steps)
        self.batches = train_batches(
            rows.rows,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            buckets=rows.buckets,
            pad_id=setup.pad_id,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.validate = Validator(setup, held_out, config.train.eval_batches)
        self.samples = SampleLog(setup, held_out, workdir)
        self.best: Validation | None = None

        self.trained = count(trainable)
        self.share = self.trained / count(setup.backbone)
        self.say(
            f"training   {rows.report}\nvalidation {held_out.report}\n"
            f"method {config.train.method}: {self.trained:,} numbers trained, "
            f"{self.share:.2%} of the backbone's {count(setup.backbone):,}"
        )

    def go(self, checkpoints: Checkpoints, log: MetricsLog) -> Outcome:
        """From the last checkpoint, or the start, to the end or an interrupt."""
        self._restore(checkpoints, log)
        config, steps = self.config.train, self.config.train.steps
        start = step = int(self.state.step)
        if step >= steps:
            self.say(f"{self.workdir} is already trained to step {step}")
        pending = None
        with (
            Interrupt() as interrupt,
            TrainingProgress(config.method, steps, start, self.console) as progress,
        ):
            self.say = progress.say
            if start == 0 and steps > 0:
                self._validate(0, log, progress)
            while step < steps and interrupt.signal is None:
                batch = next(self.batches)
                self.state, metrics = self.step(
                    self.state, self.frozen, put_batch(batch, self.setup.mesh)
                )
                step += 1
                # Read a step's metrics only when the next one is on its way, so that
                # the device never waits for the host.
                if pending:
                    self._report(*pending, log, progress)
                pending = (step, metrics, int(batch["mask"].sum()))
                last = step == steps
                evaluate = last or step % config.eval_every == 0
                save = last or step % config.checkpoint_every == 0
                if evaluate or save:
                    self._report(*pending, log, progress)
                    pending = None
                if evaluate:
                    self._validate(step, log, progress)
                if save:
                    self._save(step, checkpoints, log, progress)
            if pending:
                self._report(*pending, log, progress)
            if interrupt.signal is not None and step < steps:
                self._save(step, checkpoints, log, progress)
                checkpoints.wait()
                self.say(
                    f"stopped at step {step} of {steps}, saved; "
                    "run the same command again to go on"
                )
        if step >= steps > start:
            self._keep("last", {})
        assert self.best is not None  # step 0 or the checkpoint gave one
        return Outcome(step, self.best, self.trained, self.share, step >= steps)

    def _restore(self, checkpoints: Checkpoints, log: MetricsLog) -> None:
        restored = checkpoints.restore(self.state)
        if restored is None:
            log.truncate_after(-1)
            self.samples.truncate_after(-1)
            return
        self.state, data_state, meta = restored
        self.batches.set_state(data_state)
        self.best = Validation(**meta["best"])
        step = int(self.state.step)
        log.truncate_after(step)
        self.samples.truncate_after(step)
        self.say(f"going on from step {step} of {self.workdir}")

    def _report(self, step, metrics, tokens, log, progress) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        progress.step(step, values["loss"], tokens)
        if step % self.config.train.log_every == 0:
            values["learning_rate"] = float(np.asarray(self.schedule(step - 1)))
            values["tokens_per_second"] = round(progress.rate, 1)
            log.write(step, "train", values)

    def _validate(self, step, log, progress) -> None:
        started = time.monotonic()
        params = merge(self.state.trainable, self.frozen)
        prefix = params["prefix"]() if "prefix" in params else None
        result = self.validate(params["backbone"], prefix, step)
        log.write(
            step, "validation", {"loss": result.loss, "perplexity": result.perplexity}
        )
        mark = ""
        if self.best is None or result.loss < self.best.loss:
            self.best, mark = result, "  best so far"
            self._keep("best", {"validation_loss": result.loss, "step": step})
        progress.say(
            f"step {step:>6}  validation loss {result.loss:.4f}  "
            f"perplexity {result.perplexity:.2f}{mark}"
        )
        for line in self.samples.write(step, params["backbone"], prefix):
            progress.say(line)
        progress.pause(time.monotonic() - started)

    def _keep(self, name: str, scores: dict) -> None:
        params = merge(self.state.trainable, self.frozen)
        save_result(self.workdir / name, self.setup, params, scores)

    def _save(self, step, checkpoints, log, progress) -> None:
        started = time.monotonic()
        log.flush()
        meta = {"best": dataclasses.asdict(self.best)} if self.best else {}
        checkpoints.save(step, self.state, self.batches.get_state(), meta)
        progress.pause(time.monotonic() - started)
