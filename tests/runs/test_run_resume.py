"""Runs that were stopped go on as if nothing had happened (law 8)."""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rounding import SUM

import prefix_jax.runs.train as train_module
from prefix_jax.errors import InputError
from prefix_jax.runs.train import train
from prefix_jax.runs.validate import Validation, Validator
from prefix_jax.storage.artifact import read_metadata
from runs.support import Crash, lines, quiet


def crash_at(number, monkeypatch):
    """Training crashes, once, as it takes its batch of this number, from 1."""
    put_batch, calls = train_module.put_batch, itertools.count(1)

    def crash(batch, mesh):
        if next(calls) == number:
            raise Crash
        return put_batch(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", crash)


def test_crash_and_resume_equals_the_straight_run(
    config, finished, tmp_path, monkeypatch
):
    """Law 8: bit for bit, the order of the data, dropout and the metrics included."""
    crash_at(6, monkeypatch)
    with pytest.raises(Crash):
        train(config, tmp_path / "run", quiet())
    outcome = train(config, tmp_path / "run", quiet())
    assert outcome.finished and outcome.step == 7
    for name in ("best", "last"):
        one, other = finished / name, tmp_path / "run" / name
        file = "adapter_model.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()
    assert lines(finished) == lines(tmp_path / "run")
    assert (finished / "samples.jsonl").read_text() == (
        tmp_path / "run" / "samples.jsonl"
    ).read_text()


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_on_other_devices_it_goes_on_to_rounding_and_says_so(
    config, finished, tmp_path, monkeypatch, first, then
):
    """The order of the data is the same; only sums are in another order."""
    crash_at(6, monkeypatch)
    with pytest.raises(Crash):
        train(config.replaced({"mesh.data": first}), tmp_path, quiet())
    console = quiet()
    assert train(config.replaced({"mesh.data": then}), tmp_path, console).finished
    said = " ".join(console.file.getvalue().split())
    names = {1: "1 device", 2: "2 devices"}
    assert f"going on with {names[then]}, before with {names[first]}:" in said
    for one, other in zip(lines(finished), lines(tmp_path), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, str):
                assert value == other[name]
            else:
                np.testing.assert_allclose(value, other[name], **SUM)


def test_a_packed_run_resumes_exactly(config, tmp_path, monkeypatch):
    packed = config.replaced({"data.pack": 128, "train.samples": 0})
    told: list[str] = []
    console = quiet()
    console.print = lambda text, **_: told.append(text)
    assert train(packed, tmp_path / "straight", console).finished
    assert "packed rows of 128 tokens" in told[0]
    crash_at(6, monkeypatch)
    with pytest.raises(Crash):
        train(packed, tmp_path / "run", quiet())
    assert train(packed, tmp_path / "run", quiet()).finished
    assert lines(tmp_path / "straight") == lines(tmp_path / "run")


def test_a_sample_that_was_half_written_is_left_out(config, finished, tmp_path):
    """Also where the process was killed between the bytes of a letter."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + '{"step": 7, "text": "é'.encode()[:-1])
    assert train(config, tmp_path / "run", quiet()).finished
    assert path.read_bytes() == whole
    path.write_bytes(b"\x89\n" + whole)
    with pytest.raises(InputError, match=r"samples.jsonl, line 1: expected"):
        train(config, tmp_path / "run", quiet())


def test_interrupt_saves_and_says_how_to_go_on(config, tmp_path, monkeypatch):
    put_batch, calls = train_module.put_batch, []

    def interrupt_at_third(batch, mesh):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return put_batch(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", interrupt_at_third)
    clock = itertools.count(0.0, 1000.0)
    fake_time = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(train_module, "time", fake_time)
    console = quiet()
    outcome = train(config, tmp_path, console)
    assert not outcome.finished and outcome.step == 3
    assert "run the same command again to go on" in console.file.getvalue()
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert read_metadata(tmp_path / "last").scores == {"step": 3}
    clock = itertools.count(0.0)
    resumed = train(config, tmp_path, quiet())
    assert outcome.seconds >= 1000 and resumed.seconds > outcome.seconds
    assert train(config, tmp_path, quiet()).seconds == resumed.seconds


def test_patience_stops_after_so_many_validations_without_a_lower_loss(
    config, tmp_path, monkeypatch
):
    """Also where the run was stopped between them, and it stays stopped."""
    losses = iter([5.0, 3.0, 4.0, 2.0, 2.0, 9.0, 9.0, 3.0, 1.0])

    def measure(self, backbone, prefix, step=0, progress=None):
        return Validation(step, next(losses), 1)

    monkeypatch.setattr(Validator, "__call__", measure)
    patient = dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, steps=50, patience=3, eval_every=2, checkpoint_every=3
        ),
    )
    crash_at(10, monkeypatch)  # checkpoint of step 9: one of the three seen
    with pytest.raises(Crash):
        train(patient, tmp_path, quiet())
    console = quiet()
    for _ in range(2):
        outcome = train(patient, tmp_path, console)
        assert outcome.finished and outcome.step == 12 and outcome.best.step == 6
    assert "stopped at step 12 of 50" in console.file.getvalue()
    assert "already trained to step 12" in console.file.getvalue()
    assert read_metadata(tmp_path / "last").scores == {"step": 12}
    assert next(losses) == 3.0


@pytest.mark.parametrize("step", [4, 7], ids=["midway", "at the end"])
def test_a_kill_before_the_last_prefix_is_kept_is_mended(
    config, finished, tmp_path, monkeypatch, step
):
    kept, save_result = [], train_module.save_result

    def crash_once(folder, setup, params, scores):
        kept.append((folder.name, scores["step"]))
        if kept[-1] == ("last", step) and kept.count(("last", step)) == 1:
            raise Crash
        save_result(folder, setup, params, scores)

    monkeypatch.setattr(train_module, "save_result", crash_once)
    with pytest.raises(Crash):
        train(config, tmp_path, quiet())
    kept_before = len(kept)
    train(config, tmp_path, quiet())
    assert kept[kept_before] == ("last", step)
    one, other = (
        run / "last" / "adapter_model.safetensors" for run in (finished, tmp_path)
    )
    assert one.read_bytes() == other.read_bytes()


def test_one_process_at_a_time_trains_in_a_folder(config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    holds = (
        "import pathlib, sys; from prefix_jax.runs.record import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another process is training in"):
            train(config, tmp_path / "run", quiet())
    finally:
        other.kill()  # which ends its lock, too
        other.communicate()
    assert train(config, tmp_path / "run", quiet()).finished
