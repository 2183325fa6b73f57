"""Checkpoints: exact, whole or absent, and refused where they do not belong."""

import dataclasses
import importlib.metadata
import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
import transformers
from states import make_step, opened, peek, same, start

from prefix_jax.errors import InputError
from prefix_jax.learning.split import count, split
from prefix_jax.learning.step import init_train_state
from prefix_jax.storage.digest import text_digest
from prefix_jax.storage.versions import library_versions

META = {"best": {"loss": 1.5, "step": 3}, "config": {"buckets": [8, 16]}}


@pytest.fixture(scope="module")
def step():
    return make_step()


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
                resumed, data_state, meta, damaged = restored
                assert int(resumed.step) == checkpoints.latest_step == until - 2
                assert data_state == {"next_index": until - 2}
                assert meta == META and not damaged
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


def test_after_a_write_that_failed_the_next_one_is_made(tmp_path, backbone, step):
    """A limit of the system's on files is a full disk, in the background too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = step(start(backbone))
    with opened(tmp_path) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError, match="could not be written"):
                checkpoints.save(1, state, {}, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        state = step(state)
        checkpoints.save(2, state, {}, {})
        checkpoints.wait()
    with opened(tmp_path) as checkpoints:
        restored = checkpoints.restore(start(backbone))
        assert restored is not None and same(restored.state, state)


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


def test_what_was_left_half_written_is_gone_when_the_folder_is_open(saved):
    home = saved / "checkpoints"
    whole = {path.name for path in home.iterdir()}
    latest = max(map(int, whole))
    shutil.copytree(home / str(latest), home / f"{latest + 1}.orbax-checkpoint-tmp")
    (home / str(latest + 2)).mkdir()
    with opened(saved) as checkpoints:
        assert {path.name for path in home.iterdir()} == whole
        assert checkpoints.latest_step == latest


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


@pytest.mark.parametrize("format", [1, 99])
def test_another_format_is_named(saved, backbone, format):
    path = saved / "checkpoints" / "2" / "meta" / "metadata"
    record = json.loads(path.read_text()) | {"format": format}
    digests = record.pop("digests")
    if format > 1:  # which had none
        digests.pop("meta")
        record["digests"] = digests
        record["digests"] = digests | {"meta": text_digest(record)}
    path.write_text(json.dumps(record))
    with (
        opened(saved) as checkpoints,
        pytest.raises(InputError, match=rf"has format {format}; this .* reads 2"),
    ):
        checkpoints.restore(start(backbone))


def test_an_empty_step_folder_is_not_a_checkpoint(saved, backbone):
    (saved / "checkpoints" / "7").mkdir()
    with opened(saved) as checkpoints:
        assert checkpoints.latest_step == 2
        assert int(checkpoints.restore(start(backbone)).state.step) == 2


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"cannot keep checkpoints in .*run"):
        opened(tmp_path / "run")
