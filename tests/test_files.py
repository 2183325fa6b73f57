"""Files and folders are replaced whole or not at all."""

import json
import math
import os
import shutil
import stat

import numpy as np
import pytest

from prefix_jax.model.tensor_files import save_tensors
from prefix_jax.model.weights import save_backbone
from prefix_jax.seal import SUMS
from prefix_jax.storage.files import (
    recover,
    remove_folder,
    replaced,
    write_json,
    write_text,
)
from prefix_jax.storage.log import MetricsLog


class Crash(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_beside_and_then_renamed(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def crash(source, target):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(Crash):
            write_text(path, "new, é")
    assert path.read_text() == "old"
    write_text(path, "new, é")
    assert path.read_text(encoding="utf-8") == "new, é"
    assert names(tmp_path) == ["a.json"]


def test_json_is_strict(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"loss": math.nan, "rates": (1.0, -math.inf)})
    value = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert value == {"loss": None, "rates": [1.0, None]}


def test_what_cannot_be_json_leaves_the_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [1, object()])
    assert json.loads(path.read_text()) == [1]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "best"
    for name in ("a", "b"):
        with replaced(folder) as fresh:
            (fresh / name).write_text(name)
        assert names(folder) == [SUMS, name]
    assert names(tmp_path) == ["best"]


def test_a_folder_that_could_not_be_filled_is_left(tmp_path):
    folder = tmp_path / "best"
    with replaced(folder) as fresh:
        (fresh / "a").write_text("a")
    with pytest.raises(Crash), replaced(folder) as fresh:
        (fresh / "b").write_text("b")
        raise Crash
    assert names(folder) == [SUMS, "a"] and names(tmp_path) == ["best"]


def test_what_a_killed_process_left_beside_is_no_hindrance(tmp_path):
    folder = tmp_path / "best"
    for end in ("new", "old"):
        (tmp_path / f".best.{end}").mkdir()
        (tmp_path / f".best.{end}" / "half").write_text("")
    with replaced(folder) as fresh:
        (fresh / "a").write_text("a")
    assert names(folder) == [SUMS, "a"] and names(tmp_path) == ["best"]


def test_a_process_killed_between_two_renames_is_recovered_from(tmp_path):
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "a").write_text("a")
    recover(tmp_path / "best")
    assert names(tmp_path / "best") == ["a"] and names(tmp_path) == ["best"]
    recover(tmp_path / "best")


@pytest.fixture
def umask():
    """Sets the process's umask for a test."""
    before = os.umask(0o077)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_may_read(tmp_path, umask, mask, small, tokenizer):
    """Whoever writes: we, safetensors or transformers; whole folders too."""
    umask(mask)
    write_json(tmp_path / "a.json", {})
    save_tensors({"x": np.zeros(2)}, tmp_path / "x.safetensors")
    with replaced(tmp_path / "best") as fresh:
        save_backbone(fresh, small)
        tokenizer.save_pretrained(fresh)
    with MetricsLog(tmp_path):
        pass
    for path in tmp_path.rglob("*"):
        most = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == most & ~mask, path


def test_a_folder_that_is_being_written_in_is_removed(tmp_path, monkeypatch):
    """Each time something else has come into it, until nothing does."""
    folder, calls = tmp_path / "half", []
    (folder / "d").mkdir(parents=True)
    rmdir = os.rmdir

    def late(name, **where):
        calls.append(name)
        if len(calls) <= 3:
            (folder / "d" / str(len(calls))).write_text("late")
        rmdir(name, **where)

    monkeypatch.setattr(os, "rmdir", late)
    with pytest.raises(OSError, match="not empty"):
        shutil.rmtree(folder)
    remove_folder(folder)
    assert len(calls) > 3 and not folder.exists()
    remove_folder(folder)  # it is gone: nothing to do
    calls.clear()
    (folder / "d").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):  # the time is over
        remove_folder(folder, seconds=0.0)
