"""A training run: resumable, watched, its prefix kept.

workdir/
  config.json       the resolved recipe, library versions, fingerprints of the backbone
                    and of the rows
  checkpoints/      Orbax: what is trained, optimizer, step, key, data position
  metrics.jsonl     one line per logged step and per validation
  samples.jsonl     texts written at each validation
  best/             the prefix (PEFT layout), or the tuned backbone, of the lowest
                    validation loss
  last/             the same of the last checkpoint
  curves.png        loss by step
  faults/           the batches of steps whose loss or gradient was not finite
"""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from prefix_jax.config import Config
from prefix_jax.distributed import check_alike, is_first
from prefix_jax.errors import InputError
from prefix_jax.learning.optim import make_schedule
from prefix_jax.learning.split import Params, count, folded, merge, split
from prefix_jax.learning.step import TrainState, init_train_state
from prefix_jax.mesh import elsewhere, put, put_batch, shared_by, sharing
from prefix_jax.runs.faults import Faults, Watchdog, check_finite, saving
from prefix_jax.runs.interrupt import Interrupt
from prefix_jax.runs.prepare import Setup, prepare
from prefix_jax.runs.programs import train_program
from prefix_jax.runs.progress import TrainingProgress, screen
from prefix_jax.runs.record import alone_in, check_folder, check_run, write_record
from prefix_jax.runs.result import Outcome, save_result
from prefix_jax.runs.samples import SampleLog
from prefix_jax.runs.validate import Validation, Validator
from prefix_jax.seal import check_seal
from prefix_jax.storage.checkpoint import Checkpoints
from prefix_jax.storage.files import recover
from prefix_jax.storage.log import MetricsLog, plot_curves
from prefix_jax.storage.remote import Place, at_hand


def train(config: Config, workdir: Path, console: Console | None = None) -> Outcome:
    """Train as `config` says, from the last checkpoint in `workdir` if there is one.

    Several processes (`jax.distributed`) share each batch and the folder `workdir`,
    which may be in a bucket, gs://BUCKET/FOLDER.
    Raises InputError for input that cannot be used, among it a workdir that holds
    a run of another recipe.
    """
    with at_hand(workdir) as place:
        check_run(config, place.folder)
        return _train(prepare(config), place, console)


def train_prepared(
    setup: Setup, workdir: Path, console: Console | None = None
) -> Outcome:
    """As `train`, with what `prepare` loaded."""
    with at_hand(workdir) as place:
        return _train(setup, place, console)


def _train(setup: Setup, place: Place, console: Console | None) -> Outcome:
    console, workdir = console or screen(), place.folder
    check_folder(workdir)
    config = setup.config
    run = _Run(setup, place, console)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone_in(workdir))
        # Only now: a mistake before must not bind the folder to its recipe.
        write_record(config, run.fingerprints, workdir)
        checkpoints = stack.enter_context(
            Checkpoints(place.home, backbone_fingerprint=setup.fingerprint)
        )
        nowhere = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(
            MetricsLog(
                workdir if is_first() else Path(nowhere),
                tensorboard=config.train.tensorboard,
            )
        )
        outcome = run.go(checkpoints, log)
    if outcome.finished:
        if outcome.best.step == 0 and config.train.steps > 0:
            run.say(
                "no validation was better than the start: nothing useful was learned; "
                "lower optim.learning_rate or train longer"
            )
        run.say(f"best, of step {outcome.best.step}: {place.home / 'best'}")
        if is_first() and (picture := plot_curves(workdir)):
            run.say(f"curves: {place.home / picture.name}")
    return outcome


class _Run:
    """The loop and what it carries from step to step."""

    def __init__(self, setup: Setup, place: Place, console: Console):
        config = setup.config
        self.setup, self.config = setup, config
        self.place, self.console = place, console
        self.say: Callable[[str], None] = functools.partial(
            console.print, highlight=False, markup=False, soft_wrap=True
        )

        rows = setup.rows("train")
        held_out = setup.rows("validation")
        self.fingerprints = {
            "backbone": setup.fingerprint,
            "training rows": rows.fingerprint,
            "validation rows": held_out.fingerprint,
        }
        check_alike(self.fingerprints)
        params = setup.initial_params(rows)
        trainable, frozen = split(params, config.train.method)
        optimizer, self.step = train_program(config, setup.mesh)
        key = jax.random.key(config.train.seed)
        state = init_train_state(trainable, optimizer, key)
        self.state: TrainState = put(state, setup.mesh)
        self.frozen: Params = put(frozen, setup.mesh)
        self.schedule = make_schedule(config.optim, config.train.steps)
        bins = setup.bins(rows)
        self.batches = setup.train_batches(rows, bins)
        self.validate = Validator(setup, held_out, config.train.eval_batches)
        self.samples = SampleLog(setup, held_out, place.folder)
        self.best: Validation  # from the checkpoint, or the validation at the start
        self.since_best = 0  # validations
        self.faults = Faults(setup, place.folder, lambda text: self.say(text))
        self._saving = functools.partial(saving, config.train, self.faults.say)
        self.watchdog = Watchdog(config.train)
        self.seconds: float  # of the last checkpoint

        self.shared = shared_by(setup.mesh)
        self.trained = count(trainable)
        self.share = self.trained / count(setup.backbone)
        self.say(
            f"training   {rows.report}\n"
            + (f"           {bins}\n" if bins else "")
            + f"validation {held_out.report}\n"
            f"method {config.train.method}: {self.trained:,} numbers trained, "
            f"{self.share:.2%} of the backbone's {count(setup.backbone):,}"
            + f"\n{sharing(setup.mesh)}"
            * (jax.device_count() > 1)
        )

    def go(self, checkpoints: Checkpoints, log: MetricsLog) -> Outcome:
        """From the last checkpoint, or the start, to the end or an interrupt."""
        self.started = time.monotonic()  # earlier by what earlier calls took
        restored = self._restore(checkpoints, log)
        config, steps = self.config.train, self.config.train.steps
        start = step = int(self.state.step)
        pending = None
        shared = multihost_utils.reached_preemption_sync_point
        with (
            Interrupt(shared if jax.process_count() > 1 else None) as interrupt,
            TrainingProgress(config.method, steps, start, self.console) as progress,
            self.watchdog,
        ):
            self.say = progress.say
            if steps == 0:
                self.say("train.steps is 0: the start is kept as it is, untrained")
            if not restored:
                self._validate(0, log, progress)
                self._save(0, checkpoints, log, progress)
            while not self._finished(step) and not interrupt.stops(step):
                batch = next(self.batches)
                self.state, metrics = self.step(
                    self.state, self.frozen, put_batch(batch, self.setup.mesh)
                )
                step += 1
                self.watchdog.feed()
                with self._saving():
                    checkpoints.check()
                # Read a step's metrics only when the next one is on its way, so that
                # the device never waits for the host.
                if pending:
                    self._report(*pending, log, progress)
                pending = (step, metrics, batch)
                last = step == steps
                evaluate = last or step % config.eval_every == 0
                save = last or step % config.checkpoint_every == 0
                if evaluate or save:
                    self._report(*pending, log, progress)
                    pending = None
                if evaluate:
                    self._validate(step, log, progress)
                last = self._finished(step)
                if save or last:
                    self._save(step, checkpoints, log, progress, last=last)
            if pending:
                self._report(*pending, log, progress)
            finished = self._finished(step)
            if not finished:
                self._save(step, checkpoints, log, progress, last=True)
                self.say(
                    f"stopped at step {step} of {steps}, saved; "
                    "run the same command again to go on"
                )
            if finished and start < step < steps:
                self.say(
                    f"stopped at step {step} of {steps}: no lower validation loss in "
                    f"the last {self.since_best} (train.patience)"
                )
        return Outcome(
            step, self.best, self.trained, self.share, self.seconds, finished
        )

    def _finished(self, step: int) -> bool:
        """At the last step, or out of patience."""
        config = self.config.train
        return step >= config.steps or (
            config.patience is not None and self.since_best >= config.patience
        )

    def _restore(self, checkpoints: Checkpoints, log: MetricsLog) -> bool:
        """Whether there was a checkpoint to go on from."""
        restored = checkpoints.restore(self.state)
        if restored is None:
            log.truncate_after(-1)
            self.samples.truncate_after(-1)
            return False
        self.state, meta = restored.state, restored.meta
        for damage in restored.damaged:
            self.say(f"warning: {damage}; going on from the one before")
        if moved := elsewhere(meta.get("shared"), self.shared):
            self.say(moved)
        self.batches.set_state(restored.data_state)
        self.best = Validation(**meta["best"])
        self.since_best = meta.get("since_best", 0)
        self.seconds = meta["seconds"]
        self.faults.skipped = meta["skipped"]
        self.started -= self.seconds
        step = int(self.state.step)
        # The process may have been killed between the checkpoint and this.
        self._keep("last", {"step": step})
        self._check_best(step)
        log.truncate_after(step)
        self.samples.truncate_after(step)
        if not self._finished(step):
            self.say(f"going on from step {step} of {self.place.home}")
        else:
            self.say(f"{self.place.home} is already trained to step {step}")
        return True

    def _check_best(self, step: int) -> None:
        """What is damaged in `best` is written anew, replaced later, or an error."""
        best = self.place.folder / "best"
        if is_first():
            recover(best)
        multihost_utils.sync_global_devices("best")
        try:
            check_seal(best)
        except InputError as error:
            if self.best.step == step:
                self.say(f"warning: {error}\nwritten again from the checkpoint")
                self._keep("best", {"validation_loss": self.best.loss, "step": step})
                return
            if self._finished(step):
                raise
            self.say(f"warning: {error}\nthe next validation's takes its place")
            self.best = dataclasses.replace(self.best, loss=np.nan)

    def _report(self, step, metrics, batch, log, progress) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        # Of several processes each knows its own rows, which are alike.
        tokens = int(batch["mask"].sum()) * jax.process_count()
        progress.step(step, values["loss"], tokens)
        if values["skipped"]:
            self._check_finite(step)
        counts = self.faults.judge(step, values, batch)
        if counts:
            del values["skipped"]
        if step % self.config.train.log_every == 0 or not counts:
            values["learning_rate"] = float(np.asarray(self.schedule(step - 1)))
            if progress.rate is not None:
                values["tokens_per_second"] = round(progress.rate, 1)
            with self._saving():
                log.write(step, "train", values)

    def _validate(self, step, log, progress) -> None:
        started = time.monotonic()
        params = merge(self.state.trainable, self.frozen)
        prefix = folded(params)
        with progress.counting("validation", len(self.validate)) as count_batch:

            def heard(batches):
                self.watchdog.feed()
                count_batch(batches)

            result = self.validate(params["backbone"], prefix, step, heard)
        with self._saving():
            values = {"loss": result.loss, "perplexity": result.perplexity}
            log.write(step, "validation", values)
        mark = ""
        self.since_best += 1
        if step == 0 or result.loss < np.nan_to_num(self.best.loss, nan=np.inf):
            with self._saving(must=step == 0):
                self._keep("best", {"validation_loss": result.loss, "step": step})
                # Only now: what could not be kept is not the best that there is.
                self.best, self.since_best, mark = result, 0, "  best so far"
        progress.say(
            f"step {step:>6}  validation loss {result.loss:.4f}  "
            f"perplexity {result.perplexity:.2f}{mark}"
        )
        with self._saving():
            for line in self.samples.write(step, params["backbone"], prefix):
                progress.say(line)
        progress.pause(time.monotonic() - started)

    def _keep(self, name: str, scores: dict) -> None:
        params = merge(self.state.trainable, self.frozen)
        save_result(self.place.folder / name, self.setup, params, scores)

    def _save(self, step, checkpoints, log, progress, *, last=False) -> None:
        """`last`: nothing tries again, so it must not fail, and is waited for."""
        started = time.monotonic()
        # A checkpoint that is not finite would end every later call as well.
        self._check_finite(step)
        self.seconds = started - self.started
        with self._saving(must=last or step == 0):
            log.flush()
            self.place.keep()  # before the checkpoint, which goes on from these lines
            meta = {
                "best": dataclasses.asdict(self.best),
                "since_best": self.since_best,
                "seconds": self.seconds,
                "skipped": self.faults.skipped,
                "shared": self.shared,
            }
            checkpoints.save(step, self.state, self.batches.get_state(), meta)
            self._keep("last", {"step": step})
            if last:
                checkpoints.wait()
        self.watchdog.feed()
        progress.pause(time.monotonic() - started)

    def _check_finite(self, step: int) -> None:
        kept = folded(merge(self.state.trainable, self.frozen))
        check_finite(step, (self.state.trainable, kept), self.place.home)
