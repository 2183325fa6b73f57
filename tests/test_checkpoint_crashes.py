"""Checkpoints of a process that is killed, or whose disk is full: whole or absent."""

import dataclasses
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from states import make_step, opened, same, start

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def step():
    return make_step()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("heard_by", ["save", "wait", "leaving"])
def test_a_failure_in_the_background_is_heard(tmp_path, backbone, step, heard_by):
    """No file may grow beyond some bytes, as on a full disk."""
    state = step(start(backbone, length=32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = opened(tmp_path)
    checkpoints.save(1, state, {}, {})
    checkpoints.wait()
    state = step(state)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written .* steps there: 1"):
            checkpoints.save(2, state, {}, {})  # hears it itself, where it is slow
            if heard_by == "save":
                later = dataclasses.replace(state, step=jnp.int32(3))
                checkpoints.save(3, later, {}, {})
            elif heard_by == "wait":
                checkpoints.wait()
            else:
                checkpoints.__exit__(None, None, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with opened(tmp_path) as again:
        assert int(again.restore(start(backbone, length=32)).state.step) == 1


WRITER = """
import dataclasses, sys, time
import jax, jax.numpy as jnp
from prefix_jax.learning.step import TrainState
from prefix_jax.storage.checkpoint import Checkpoints

def state(step):
    fill = {"prefix": {str(i): jnp.full(20_000, step, jnp.float32) for i in range(6)}}
    return TrainState(jnp.int32(step), fill, (), jax.random.key(step))

if __name__ == "__main__":
    with Checkpoints(sys.argv[1], backbone_fingerprint="") as checkpoints:
        found = checkpoints.restore(state(0))
        step = int(found.state.step) if found else 0
        while True:
            step += 1
            checkpoints.save(step, state(step), {"next_index": step}, {"step": step})
            print(step, flush=True)
"""


def kill_while_writing(workdir: Path, delay: float) -> int:
    """Starts a process that saves and saves, kills it; the last step it began."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(workdir)],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(3):
            begun = process.stdout.readline()
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
    rest = process.communicate(timeout=60)[0].split()
    return int(rest[-1] if rest else begun)


def test_a_killed_process_leaves_the_step_before_or_the_new_one(tmp_path):
    writer = {"__name__": "writer"}
    exec(WRITER, writer)
    rng = random.Random(0)
    for _ in range(2):
        begun = kill_while_writing(tmp_path, delay=rng.uniform(0, 0.05))
        with opened(tmp_path, fingerprint="") as checkpoints:
            state, data_state, meta, damaged = checkpoints.restore(writer["state"](0))
        step = int(state.step)
        # `begun` was printed, the next may have been written before it was.
        assert begun - 1 <= step <= begun + 1
        assert same(state, writer["state"](step)) and not damaged
        assert data_state == {"next_index": step} and meta == {"step": step}
    with opened(tmp_path, fingerprint="") as checkpoints:
        checkpoints.save(step + 1, writer["state"](step + 1), {}, {})
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {str(step), str(step + 1)}, "half-written folders are left"
