"""What goes wrong in a run: it is said, nothing good is lost, nothing bad is kept."""

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import prefix_jax.runs.train as train_module
from prefix_jax.config import Config
from prefix_jax.errors import InputError
from prefix_jax.learning.split import finite
from prefix_jax.runs.faults import MOST_IN_A_ROW, WINDOW, Faults
from prefix_jax.runs.prepare import prepare
from prefix_jax.runs.train import train
from prefix_jax.seal import check_seal
from prefix_jax.storage.artifact import load_prefix
from prefix_jax.storage.checkpoint import Checkpoints
from runs.support import Crash, lines, quiet, recipe, run_cli


def with_train(config: Config, **changes) -> Config:
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, **changes)
    )


@pytest.fixture
def broken_at(monkeypatch):
    """Makes the backbone NaN for the steps (from 1) of one call of train."""

    def install(*numbers):
        program = train_module.train_program

        def broken(config, mesh):
            optimizer, step = program(config, mesh)

            def run(state, frozen, batch):
                if int(state.step) + 1 in numbers:
                    frozen = jax.tree.map(lambda x: x * jnp.nan, frozen)
                return step(state, frozen, batch)

            return optimizer, run

        monkeypatch.setattr(train_module, "train_program", broken)
        return lambda: monkeypatch.setattr(train_module, "train_program", program)

    return install


def test_a_step_that_is_not_finite_ends_the_run_and_its_batch_is_kept(
    config, finished, tmp_path, broken_at
):
    mend = broken_at(6)
    with pytest.raises(InputError, match=r"at step 6 the loss is nan .*on-nonfinite"):
        train(config, tmp_path, quiet())
    rows = (tmp_path / "faults" / "step_000006.jsonl").read_text().splitlines()
    assert len(rows) == config.train.batch_size
    row = json.loads(rows[0])
    assert "name : " in row["text"] and len(row["tokens"]) == len(row["loss_mask"])
    mend()
    train(config, tmp_path, quiet())
    assert lines(tmp_path) == lines(finished)


def test_a_step_that_is_not_finite_can_be_passed_over(
    config, finished, tmp_path, broken_at
):
    broken_at(3, 5)
    console = quiet()
    skipping = with_train(config, on_nonfinite="skip")
    assert train(skipping, tmp_path, console).finished
    assert "2 such steps so far" in console.file.getvalue()
    skipped = [line for line in lines(tmp_path) if line.get("skipped")]
    assert [line["step"] for line in skipped] == [3, 5]
    assert all(line["loss"] is None for line in skipped)
    backbone = prepare(config).backbone
    for name in ("best", "last"):
        assert finite(load_prefix(tmp_path / name, backbone).keys)
    assert lines(tmp_path)[-1] != lines(finished)[-1]


def test_passing_over_ends_where_nothing_is_left(config, tmp_path, broken_at):
    broken_at(*range(1, 100))
    skipping = with_train(config, on_nonfinite="skip", steps=50)
    with pytest.raises(InputError, match=f"nor from the {MOST_IN_A_ROW - 1} before"):
        train(skipping, tmp_path, quiet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere"}, "data.path nowhere does not exist"),
        ({"source": "e2e", "path": None}, "needs the folder that holds it"),
    ],
)
def test_a_folder_that_is_not_there_is_said_before_weights_are_read(
    config, monkeypatch, changes, message
):
    monkeypatch.delattr("prefix_jax.runs.prepare.load_backbone")
    data = dataclasses.replace(config.data, **changes)
    with pytest.raises(InputError, match=message):
        prepare(dataclasses.replace(config, data=data))


def test_spikes_are_reported(config, tmp_path):
    said: list[str] = []
    faults = Faults(prepare(config), tmp_path, said.append)
    values = {"skipped": 0.0, "objective": 0.0, "grad_norm": 0.0}
    for step in range(WINDOW):
        faults.judge(step, {**values, "loss": 2.0 + 0.1 * math.sin(step)}, {})
    assert not said
    faults.judge(WINDOW, {**values, "loss": 4.0}, {})
    faults.judge(WINDOW + 1, {**values, "loss": 2.0}, {})
    assert len(said) == 1 and "loss 4.0000 is a spike" in said[0]


# --- disks ------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """The save of step 4 fails, as on a full disk."""
    save = Checkpoints.save

    def fails(self, step, *rest):
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))
        return save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", fails)


def test_what_cannot_be_saved_ends_the_run(config, tmp_path, full_disk, monkeypatch):
    with pytest.raises(OSError, match="No space left"):
        train(config, tmp_path, quiet())


def test_or_training_goes_on(config, finished, tmp_path, full_disk):
    console = quiet()
    tolerant = with_train(config, on_save_error="continue")
    assert train(tolerant, tmp_path, console).finished
    assert "not saved (" in console.file.getvalue()
    assert lines(tmp_path) == lines(finished)
    for name in ("best", "last"):
        one, other = (
            load_prefix(folder / name, prepare(config).backbone)
            for folder in (finished, tmp_path)
        )
        assert (one.keys == other.keys).all()


def test_what_must_not_fail_does_not_go_on(config, tmp_path, monkeypatch):
    """The first and the last: without them there is nothing that could try again."""
    tolerant = with_train(config, on_save_error="continue")
    for name, steps in (("start", {0}), ("end", {config.train.steps})):
        with monkeypatch.context() as patch:
            save = Checkpoints.save

            def fails(self, step, *rest, steps=steps, save=save):
                if step in steps:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return save(self, step, *rest)

            patch.setattr(Checkpoints, "save", fails)
            with pytest.raises(OSError, match="No space left"):
                train(tolerant, tmp_path / name, quiet())
    # The same command, with room, has the end that it would have had.
    assert train(tolerant, tmp_path / "end", quiet()).finished


def test_a_start_without_a_number_can_be_bettered(config, tmp_path, monkeypatch):
    measured = train_module.Validator.__call__

    def nan_at_first(self, backbone, prefix, step=0, *rest):
        found = measured(self, backbone, prefix, step, *rest)
        return dataclasses.replace(found, loss=math.nan) if step == 0 else found

    monkeypatch.setattr(train_module.Validator, "__call__", nan_at_first)
    outcome = train(config, tmp_path, quiet())
    assert outcome.best.step > 0 and math.isfinite(outcome.best.loss)


def test_a_batch_that_cannot_be_kept_is_judged_all_the_same(
    config, tmp_path, monkeypatch
):
    faults = Faults(prepare(config), tmp_path, lambda text: None)

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(faults, "_keep", fails)
    values = {"skipped": 1.0, "loss": math.nan, "objective": math.nan, "grad_norm": 1.0}
    with pytest.raises(InputError, match=r"could not be kept: .*No space.*Look at"):
        faults.judge(3, values, {})


def test_a_run_goes_on_without_its_record(config, finished, tmp_path):
    """As the message about a damaged one says."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    record = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"not JSON.*remove that file"):
        train(config, workdir, quiet())
    (workdir / "config.json").unlink()
    assert train(config, workdir, quiet()).step == config.train.steps
    assert json.loads((workdir / "config.json").read_text()) == json.loads(record)


def test_a_damaged_best_is_written_again_or_replaced(config, finished, tmp_path):
    """From the checkpoint of its step; else the next validation's takes its place."""
    done, weights = tmp_path / "done", "adapter_model.safetensors"
    shutil.copytree(finished, done)
    best = train(config, done, quiet()).best.step
    whole = (done / "best" / weights).read_bytes()
    (done / "best" / weights).write_bytes(whole[:-1])
    console = quiet()
    assert best == config.train.steps  # whose checkpoint is there
    train(config, done, console)
    assert "written again from the checkpoint" in console.file.getvalue()
    assert (done / "best" / weights).read_bytes() == whole
    earlier = sorted(done.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(earlier[-1])
    (done / "best" / weights).write_bytes(whole[:-1])
    console = quiet()
    outcome = train(config, done, console)
    said = console.file.getvalue()
    assert "is not what was written" in said and outcome.best.step > int(
        earlier[0].name
    )
    check_seal(done / "best")


def test_a_damaged_checkpoint_is_passed_over(config, finished, tmp_path, monkeypatch):
    put_batch, number = train_module.put_batch, iter(range(100))

    def crash(batch, mesh):
        if next(number) == 5:
            raise Crash
        return put_batch(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", crash)
    with pytest.raises(Crash):
        train(config, tmp_path, quiet())
    newest = max(tmp_path.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    (newest / "meta" / "metadata").write_text("{}")
    console = quiet()
    assert train(config, tmp_path, console).finished
    assert f"warning: the checkpoint of step {newest.name}" in console.file.getvalue()
    assert lines(tmp_path) == lines(finished)


# --- ends -------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_and_is_told_by_the_status(
    config, tmp_path, monkeypatch, number, status
):
    put_batch, calls = train_module.put_batch, iter(range(100))

    def interrupt(batch, mesh):
        if next(calls) == 2:
            os.kill(os.getpid(), getattr(signal, number))
        return put_batch(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", interrupt)
    monkeypatch.setattr("prefix_jax.runs.interrupt._received", 0)  # put back after it
    path = recipe(tmp_path / "recipe.py", config)
    assert run_cli("train", path, "--workdir", str(tmp_path / "run")) == status
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


HANGS = """
import time
from prefix_jax.config import TrainConfig
from prefix_jax.runs.faults import Watchdog

def hang_here():
    time.sleep(60)

with Watchdog(TrainConfig(watchdog=1)) as watchdog:
    for _ in range(3):
        time.sleep(0.6)
        watchdog.feed()
    print("fed", flush=True)
    hang_here()
"""


def test_a_process_that_hangs_shows_where_and_ends():
    ended = subprocess.run(
        [sys.executable, "-c", HANGS],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.returncode == 1 and ended.stdout == "fed\n"
    assert "Timeout" in ended.stderr and "in hang_here" in ended.stderr
