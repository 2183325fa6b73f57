"""Damaged checkpoints: found, named, and passed over for the one before."""

import errno
import shutil

import numpy as np
import pytest
from states import make_step, opened, peek, same, start

from prefix_jax.errors import InputError

META = {"best": {"loss": 1.5, "step": 3}}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, backbone):
    """A folder with the checkpoints of steps 1 and 2, and these states."""
    workdir = tmp_path_factory.mktemp("two_steps")
    state, states, step = start(backbone), {}, make_step()
    with opened(workdir) as checkpoints:
        for number in (1, 2):
            state = step(state)
            states[number] = peek(state)
            checkpoints.save(number, state, {"next_index": number}, META)
    return workdir, states


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def cut_off(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def remove(path, rng):
    path.unlink()


# Of what it could not read Orbax leaves coroutines behind that were never awaited.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("harm", [flip_a_bit, cut_off, remove])
def test_damage_is_harmless_or_the_step_before_is_used(
    tmp_path, two_steps, backbone, harm
):
    """In every file of the newest step: no state but one that was saved comes back."""
    saved, states = two_steps
    rng = np.random.default_rng(0)
    used = set()
    for path in files_of(saved / "checkpoints" / "2"):
        if not path.stat().st_size:
            continue
        shutil.copytree(saved, tmp_path / "run", dirs_exist_ok=True)
        harm(tmp_path / "run" / path.relative_to(saved), rng)
        with opened(tmp_path / "run") as checkpoints:
            found = checkpoints.restore(start(backbone))
        step = int(found.state.step)
        assert same(found.state, states[step]), path
        assert found.data_state == {"next_index": step} and found.meta == META
        names = {one.name for one in (tmp_path / "run" / "checkpoints").iterdir()}
        if step == 1:
            (message,) = found.damaged
            assert "step 2" in message and "damaged_2" in message
            assert names == {"1", "damaged_2"}
        else:
            assert not found.damaged and names == {"1", "2"}
        used.add(step)
        shutil.rmtree(tmp_path / "run")
    assert 1 in used


def test_the_damaged_step_is_written_anew(tmp_path, two_steps, backbone):
    saved, states = two_steps
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run/checkpoints/2/meta/metadata").write_text("")
    with opened(tmp_path / "run") as checkpoints:
        assert checkpoints.restore(start(backbone)).damaged
        checkpoints.save(2, states[2], {"next_index": 2}, META)
    with opened(tmp_path / "run") as checkpoints:
        found = checkpoints.restore(start(backbone))
    assert same(found.state, states[2]) and not found.damaged


def test_no_step_that_is_whole_is_an_error(tmp_path, two_steps, backbone):
    run = tmp_path / "run"
    shutil.copytree(two_steps[0], run)
    (run / "checkpoints" / "7" / "state").mkdir(parents=True)
    for step in ("1", "2"):
        for path in files_of(run / "checkpoints" / step / "state"):
            path.write_bytes(b"")
    for _ in range(2):  # the same command again must not start anew
        with (
            opened(run) as checkpoints,
            pytest.raises(
                InputError, match=r"step 7 is incomplete .*; the .* of step 1 is"
            ),
        ):
            checkpoints.restore(start(backbone))
    for step in (1, 2, 7):  # as an earlier version left them
        (run / "checkpoints" / f"{step}").rename(
            run / "checkpoints" / f"damaged_{step}"
        )
    with (
        opened(run) as checkpoints,
        pytest.raises(InputError, match=r"whole: damaged_1; damaged_2; damaged_7"),
    ):
        checkpoints.restore(start(backbone))


def test_what_is_out_of_reach_is_not_damaged(
    tmp_path, two_steps, backbone, monkeypatch
):
    """Nothing is set aside where the disk does not answer."""
    run = tmp_path / "run"
    shutil.copytree(two_steps[0], run)
    with opened(run) as checkpoints, monkeypatch.context() as patch:

        def fails(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(checkpoints._manager, "restore", fails)
        with pytest.raises(OSError, match="Input/output"):
            checkpoints.restore(start(backbone))
    with opened(run) as checkpoints:
        restored = checkpoints.restore(start(backbone))
        assert restored is not None and restored.damaged == ()
        assert int(restored.state.step) == 2
