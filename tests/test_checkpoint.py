"""Checkpoints: exact, whole or absent, and refused where they do not belong."""

import dataclasses
import importlib.metadata
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformers

from prefix_jax.errors import InputError
from prefix_jax.learning.split import count, split
from prefix_jax.learning.step import TrainState, init_train_state
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_kinds import FlatPrefix
from prefix_jax.storage.checkpoint import Checkpoints, library_versions

REPOSITORY = Path(__file__).parents[1]
META = {"best": {"loss": 1.5, "step": 3}, "config": {"buckets": [8, 16]}}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))


def start(backbone, length=4, optimizer=OPTIMIZER, key=None) -> TrainState:
    """A state of prefix mode before its first step."""
    config = backbone.config
    shape = (config.n_layer, 1, length, config.n_head, config.head_width)
    rng = np.random.default_rng(0)
    kv = KV(*(jnp.float32(rng.normal(size=shape)) for _ in range(2)))
    one = jax.tree.map(lambda x: jnp.ones((len(x), 1, 1, x.shape[3], 1)), kv)
    prefix = FlatPrefix(kv, one)
    trainable, _ = split({"backbone": backbone, "prefix": prefix}, "prefix")
    return init_train_state(
        trainable, optimizer, jax.random.key(7) if key is None else key
    )


@jax.jit
def peek(state):
    """A copy of the state that a donating step leaves alone."""
    return jax.tree.map(jnp.copy, state)


def make_step(optimizer=OPTIMIZER):
    """Like a training step: random, stateful, its input donated."""

    def step(state):
        key = jax.random.fold_in(state.key, state.step)
        grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape), state.trainable)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, opt_state, state.key)

    return jax.jit(step, donate_argnums=0)


@pytest.fixture(scope="module")
def step():
    return make_step()


def opened(workdir, fingerprint="backbone-1", **options):
    return Checkpoints(workdir, backbone_fingerprint=fingerprint, **options)


def same(a: TrainState, b: TrainState) -> bool:
    """Structure, types and bits."""

    def plain(x):
        return (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        )

    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        x.dtype == y.dtype and np.array_equal(plain(x), plain(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture
def saved(tmp_path, backbone, step):
    """A workdir with the checkpoints of steps 1 and 2."""
    state = start(backbone)
    with opened(tmp_path) as checkpoints:
        for number in (1, 2):
            state = step(state)
            checkpoints.save(number, state, {"next_index": number}, META)
    return tmp_path


def test_nothing_there_is_none(tmp_path, backbone):
    with opened(tmp_path / "new" / "run") as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.restore(start(backbone)) is None


def test_a_resumed_run_has_the_bits_of_the_straight_one(tmp_path, backbone, step):
    state = start(backbone)
    for _ in range(6):
        state = step(state)
    resumed = start(backbone)
    for until in (2, 4, 6):
        with opened(tmp_path) as checkpoints:
            if restored := checkpoints.restore(start(backbone)):
                resumed, data_state, meta = restored
                assert int(resumed.step) == checkpoints.latest_step == until - 2
                assert data_state == {"next_index": until - 2}
                assert meta == META
            while int(resumed.step) < until:
                resumed = step(resumed)
            checkpoints.save(until, resumed, {"next_index": until}, META)
    assert same(resumed, state)


def test_a_save_is_of_its_step_though_the_state_is_donated(tmp_path, backbone, step):
    state = start(backbone, length=16)
    for number in range(1, 6):
        state = step(state)
        expected = peek(state)
        with opened(tmp_path) as checkpoints:
            checkpoints.save(number, state, {}, {})
            for _ in range(5):  # while the save is being written
                state = step(state)
        with opened(tmp_path) as checkpoints:
            state, *_ = checkpoints.restore(state)
        assert same(state, expected)


def test_no_byte_of_the_backbone_is_stored(saved, backbone):
    record = json.loads((saved / "checkpoints" / "2" / "meta" / "metadata").read_text())
    names = set(record["arrays"])
    assert not [name for name in names if "backbone" in name]
    assert {"step", "key", "trainable/prefix/keys", "trainable/prefix/values"} <= names
    size = sum(p.stat().st_size for p in (saved / "checkpoints" / "2").rglob("*"))
    assert size < 4 * count(backbone)
    assert record["versions"]["jax"] == jax.__version__


def test_the_backbone_is_stored_where_it_is_trained(tmp_path, backbone):
    trainable, _ = split({"backbone": backbone}, "top2")
    state = init_train_state(trainable, optax.sgd(0.1), jax.random.key(0))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(0, state, {}, {})
        blank = jax.tree.map(jnp.zeros_like, trainable)
        like = init_train_state(blank, optax.sgd(0.1), jax.random.key(1))
        assert same(checkpoints.restore(like).state, state)


def test_the_last_ones_are_kept(tmp_path, backbone, step):
    state = start(backbone)
    with opened(tmp_path, keep=2) as checkpoints:
        for number in range(1, 5):
            state = step(state)
            checkpoints.save(number, state, {}, {})
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["3", "4"]


def test_a_step_that_is_there_is_left_as_it_is(saved, backbone, step):
    with opened(saved) as checkpoints:
        state = checkpoints.restore(start(backbone)).state
        checkpoints.save(2, state, {"next_index": 99}, META)
        assert checkpoints.restore(state).data_state == {"next_index": 2}


def test_what_cannot_be_stored_is_said_at_once(saved, backbone):
    with opened(saved) as checkpoints:
        state = checkpoints.restore(start(backbone)).state
        with pytest.raises(ValueError, match="step 3 got a state of 2"):
            checkpoints.save(3, state, {}, {})
        state = dataclasses.replace(state, step=jnp.int32(3))
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(3, state, {}, {"path": Path()})
        checkpoints.save(3, state, {}, {})
        assert checkpoints.latest_step == 3


def test_another_length_is_named(saved, backbone):
    with (
        opened(saved) as checkpoints,
        pytest.raises(InputError, match=r"length 4, the run asks for 9.*length 4"),
    ):
        checkpoints.restore(start(backbone, length=9))


def test_versions_are_those_of_what_is_installed(monkeypatch):
    installed = importlib.metadata.version

    def version(name):
        if name == "grain":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = library_versions()
    assert versions["transformers"] == transformers.__version__
    assert versions["jax"] == jax.__version__
    assert {"prefix-jax", "tokenizers", "tensorflow-datasets"} <= versions.keys()
    assert "grain" not in versions


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.sgd(0.1), r"opt_state/1/0/count: saved int32\[\], this run nothing"),
        (optax.adam(0.1, mu_dtype=jnp.bfloat16), "saved nothing, this run bfloat16"),
    ],
)
def test_another_optimizer_is_named(saved, backbone, optimizer, message):
    with opened(saved) as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(start(backbone, optimizer=optimizer))


def test_another_type_is_not_cast(saved, backbone):
    state = start(backbone)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.trainable)
    like = dataclasses.replace(state, trainable=narrow)
    message = r"prefix/keys: saved float32.*, this run bfloat16"
    with opened(saved) as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(like)


def test_another_kind_of_random_key_is_named(saved, backbone):
    like = start(backbone, key=jax.random.key(0, impl="rbg"))
    message = r"key: saved uint32\[2\], this run uint32\[4\]"
    with opened(saved) as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(like)


def test_another_backbone_is_named(saved, backbone):
    with (
        opened(saved, fingerprint="backbone-2") as checkpoints,
        pytest.raises(InputError, match="backbone-1; this run's is backbone-2"),
    ):
        checkpoints.restore(start(backbone))


def test_another_format_is_named(saved, backbone):
    path = saved / "checkpoints" / "2" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with (
        opened(saved) as checkpoints,
        pytest.raises(InputError, match=r"has format 99; this version .* reads 1"),
    ):
        checkpoints.restore(start(backbone))


def test_an_empty_step_folder_is_not_a_checkpoint(saved, backbone):
    (saved / "checkpoints" / "7").mkdir()
    with opened(saved) as checkpoints:
        assert checkpoints.latest_step == 2
        assert int(checkpoints.restore(start(backbone)).state.step) == 2


def test_an_incomplete_step_folder_is_named(saved, backbone):
    (saved / "checkpoints" / "7" / "state").mkdir(parents=True)
    with (
        opened(saved) as checkpoints,
        pytest.raises(InputError, match=r"7 is incomplete: data, meta missing"),
    ):
        checkpoints.restore(start(backbone))


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"cannot keep checkpoints in .*run"):
        opened(tmp_path / "run")


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
        checkpoints.save(2, state, {}, {})
        with pytest.raises(OSError, match=r"could not be written .* steps there: 1"):
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
            state, data_state, meta = checkpoints.restore(writer["state"](0))
        step = int(state.step)
        # `begun` was printed, the next may have been written before it was.
        assert begun - 1 <= step <= begun + 1
        assert same(state, writer["state"](step))
        assert data_state == {"next_index": step} and meta == {"step": step}
    with opened(tmp_path, fingerprint="") as checkpoints:
        checkpoints.save(step + 1, writer["state"](step + 1), {}, {})
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {str(step), str(step + 1)}, "half-written folders are left"
