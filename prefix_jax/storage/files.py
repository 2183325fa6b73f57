"""Files and folders that are replaced whole.

A process killed meanwhile leaves the old ones or the new ones, never a half, and so
does a machine that loses its power: all is on the disk before it takes a name. What was
being written then lies beside them, under a name that begins with a dot.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefix_jax.seal import seal


def write_text(path: Path, text: str) -> None:
    """The file `path`, in UTF-8, in place of the one that is there."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    to_disk(fresh)
    os.replace(fresh, path)
    to_disk(path.parent)


def write_json(path: Path, value: object) -> None:
    """A readable JSON file; NaN and infinity, which JSON has no word for, are null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; on leaving it takes the place of `folder`, sealed.

    If filling it fails, `folder` stays as it was. There are two renames: a process
    killed between them leaves the old folder as `.FOLDER.old`, for `recover`.
    """
    fresh, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        seal(fresh)
        for path in fresh.iterdir():
            to_disk(path)
        to_disk(fresh)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    recover(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Give back the old folder that a process was killed while replacing."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def remove_folder(folder: Path, seconds: float = 10.0) -> None:
    """Remove a folder that others may still be writing in, for so long.

    When a checkpoint's write fails, TensorStore's threads go on with its other files.
    """
    until = time.monotonic() + seconds
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            changing = error.errno in (errno.ENOTEMPTY, errno.ENOENT)
            if not changing or time.monotonic() > until:
                raise
            time.sleep(0.01)


def to_disk(path: Path) -> None:
    """Block until the file, or a folder's list of names, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
