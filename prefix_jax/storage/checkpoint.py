"""Checkpoints of a run: everything that is Orbax's stays behind this module.

    workdir/checkpoints/<step>/
      state/   the arrays of TrainState by leaf name; no backbone unless it is trained
      data/    position of the data iterator (JSON)
      meta/    format, backbone fingerprint, shape, type and digest of each array and
               of all JSON, library versions, and what the run wants to remember (JSON)
    workdir/checkpoints/damaged_<step>/
      a step whose files are not what was saved, set aside

Names, not Python classes, tie the arrays to the state (`state_arrays`).
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental.multihost_utils import sync_global_devices

from prefix_jax.distributed import is_first
from prefix_jax.errors import InputError, first_line
from prefix_jax.learning.step import TrainState
from prefix_jax.storage.checkpoint_record import Folder, is_step, read_arrays
from prefix_jax.storage.digest import array_digests, text_digest
from prefix_jax.storage.files import remove_folder, to_disk
from prefix_jax.storage.state_arrays import (
    check_arrays,
    facts,
    from_arrays,
    to_arrays,
)
from prefix_jax.storage.versions import library_versions

FORMAT = 2
_ITEMS = ("state", "data", "meta")
_OUT_OF_REACH = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
_NO_DAMAGE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
"""TensorStore's words for what may be well another time."""


class Restored(NamedTuple):
    """What a checkpoint gives back."""

    state: TrainState
    data_state: dict[str, Any]
    meta: dict[str, Any]
    damaged: tuple[str, ...]
    """What is wrong with newer checkpoints, which were set aside."""


class _DamagedError(Exception):
    """A checkpoint's files are not what was saved."""


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`, the last `keep` of them.

    Writing goes on in the background: what fails there is raised by the next `save`,
    `wait` or `check`, or on leaving the context. A process killed while writing leaves
    the checkpoints before as they were, and a damaged one is passed over for the one
    before it. All processes of a run make and use one alike.

        with Checkpoints(workdir, backbone_fingerprint=...) as checkpoints:
            restored = checkpoints.restore(state)
    """

    def __init__(self, workdir: Folder, *, backbone_fingerprint: str, keep: int = 2):
        """Opens or creates the folder; removes what a killed process left half-written.

        Raises InputError if `workdir` cannot hold the folder.
        """
        home = workdir if isinstance(workdir, epath.Path) else Path(workdir).absolute()
        self.folder: Folder = home / "checkpoints"
        self._fingerprint = backbone_fingerprint
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if is_first() and isinstance(self.folder, Path):
                _tidy(self.folder)
        except OSError as error:
            raise InputError(
                f"cannot keep checkpoints in {workdir}: {error}"
            ) from error
        sync_global_devices("checkpoints")
        self._fresh: int | None = None
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=_ITEMS,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                # On a disk `_tidy` has done it: Orbax's own goes on in the background
                # after `close`, and fails where it meets that of the next manager.
                cleanup_tmp_directories=not isinstance(self.folder, Path),
                # In the background its failure would hold up the process for 5 minutes.
                async_options=ocp.options.AsyncOptions(
                    create_directories_asynchronously=False
                ),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except OSError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # of the two, what came first is the cause
        finally:
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        data_state: Mapping[str, object],
        meta: Mapping[str, object],
    ) -> None:
        """Starts writing; returns when `state` may be donated to the next step.

        A step that is there already is left as it is. `data_state` and `meta` must be
        JSON. Raises OSError where writing failed, this time or the time before.
        """
        if step != int(state.step):
            raise ValueError(f"checkpoint of step {step} got a state of {state.step}")
        arrays = to_arrays(state)
        data = _plain(data_state)
        record = {
            "format": FORMAT,
            "backbone": self._fingerprint,
            "arrays": {name: facts(array) for name, array in arrays.items()},
            "versions": library_versions(),
            "run": meta,
            "digests": {**array_digests(arrays), "data": text_digest(data)},
        }
        record["digests"]["meta"] = text_digest(record)
        record = _plain(record)
        self.wait()
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(record),
                ),
                force=True,  # otherwise a step before the latest is skipped silently
            )
        except Exception as error:
            raise self._not_written(error) from error
        self._fresh = step

    def wait(self) -> None:
        """Blocks until all is on disk; raises OSError where writing failed."""
        # Forgotten whatever happens: of a write that failed there is nothing to sync.
        fresh, self._fresh = self._fresh, None
        try:
            self._manager.wait_until_finished()
            # Orbax leaves it to the system when to write what it has handed over.
            if fresh is not None and is_first():
                _to_disk(self.folder / str(fresh))
        except Exception as error:
            raise self._not_written(error) from error

    def check(self) -> None:
        """Raises OSError where writing in the background has failed so far."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._not_written(error) from error

    def restore(self, like: TrainState) -> Restored | None:
        """The newest good checkpoint, in the structure and on the devices of `like`.

        None if there is none at all. Damaged ones are set aside. Raises InputError
        where the checkpoint is of another backbone or another recipe, and names what
        differs; and where all are damaged.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, like)
            except _DamagedError as error:
                damaged[step] = f"the checkpoint of step {step} {error}"
                continue
            # Only now: without any, the next call must find what this one found.
            asides = [self._set_aside(one) for one in damaged]
            said = zip(damaged.values(), asides, strict=True)
            return restored._replace(damaged=tuple(f"{a}: now {b}" for a, b in said))
        earlier = [path.name for path in self.folder.glob("damaged_*")]
        if damaged or earlier:
            raise InputError(
                f"no checkpoint in {self.folder} is whole: "
                f"{'; '.join([*damaged.values(), *sorted(earlier)])}. Copy the run "
                "again from where there is a good one, or start anew with another "
                "--workdir"
            )
        return None

    def _restore(self, step: int, like: TrainState) -> Restored:
        folder = self.folder / str(step)
        record, data_state = self._read_json(step)
        self._check_origin(folder, record)
        wanted = to_arrays(like)
        check_arrays(folder, read_arrays(folder, record), wanted)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in wanted.items()
        }
        with _read("its arrays"):
            found = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        digests = array_digests(found["state"])
        for name, digest in digests.items():
            if digest != record["digests"].get(name):
                raise _DamagedError(f"is damaged ({name} is not what was saved)")
        state = from_arrays(found["state"], like)
        if int(state.step) != step:
            raise _DamagedError(f"is damaged (it is of step {int(state.step)})")
        return Restored(state, data_state, record["run"], ())

    def _read_json(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        folder = self.folder / str(step)
        for item in _ITEMS:
            if not (folder / item).is_dir():
                raise _DamagedError(f"is incomplete ({item} is missing)")
        read = ocp.args.JsonRestore()
        with _read("its JSON"):
            found = self._manager.restore(
                step, args=ocp.args.Composite(data=read, meta=read)
            )
            record, data = found["meta"], found["data"]
            if record.get("format") == 1:  # had no digests
                self._check_origin(folder, record)
            digests = dict(record["digests"])
        own = digests.pop("meta", None)
        if own != text_digest({**record, "digests": digests}):
            raise _DamagedError("is damaged (meta is not what was saved)")
        if digests.get("data") != text_digest(data):
            raise _DamagedError("is damaged (data is not what was saved)")
        return record, data

    def _set_aside(self, step: int) -> Folder:
        """Out of Orbax's sight, for it would not write over it."""
        aside = self.folder / f"damaged_{step}"
        sync_global_devices("damage")  # all have read it
        try:
            if is_first():
                if aside.exists():
                    aside.rmtree() if isinstance(aside, epath.Path) else rmtree(aside)
                (self.folder / str(step)).rename(aside)
        finally:
            sync_global_devices("set aside")
        self._manager.reload()
        return aside

    def _check_origin(self, folder: Folder, record: Mapping[str, Any]) -> None:
        """The place for all that must hold before an array is read."""
        if record.get("format") != FORMAT:
            raise InputError(
                f"checkpoint {folder} has format {record.get('format')!r}; this "
                f"version of prefix_jax reads {FORMAT}; use another --workdir"
            )
        if record["backbone"] != self._fingerprint:
            raise InputError(
                f"checkpoint {folder} was made with another backbone "
                f"({record['backbone']}; this run's is {self._fingerprint}); give the "
                "same --backbone.name, or use another --workdir"
            )

    def _not_written(self, error: Exception) -> OSError:
        said = first_line(error)[:300]
        # The reason may stand behind a long list of what Orbax was about to do.
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO):
            said = os.strerror(number) if os.strerror(number) in str(error) else said
        complete = sorted(int(p.name) for p in self.folder.glob("*") if is_step(p))
        return OSError(
            f"a checkpoint could not be written in {self.folder} "
            f"({said}); steps there: "
            f"{', '.join(map(str, complete)) or 'none'}"
        )


@contextlib.contextmanager
def _read(what: str) -> Iterator[None]:
    """Damaged files fail in any way there is; so does a disk that is out of reach."""
    try:
        yield
    except (InputError, MemoryError, PermissionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OUT_OF_REACH:
            raise
        if "RESOURCE_EXHAUSTED" in str(error):  # the device's memory
            raise
        if any(word in str(error) for word in _NO_DAMAGE):
            raise OSError(f"{what} cannot be read: {first_line(error)}") from error
        # TensorStore's details are a function, not a text.
        said = first_line(error).partition(" See full TensorStore")[0][:200]
        raise _DamagedError(f"is damaged ({what} cannot be read: {said})") from error


def _tidy(folder: Path) -> None:
    """Removes what a killed process left half-written on this machine's disk."""
    for one in filter(Path.is_dir, folder.iterdir()):
        if ocp.utils.TMP_DIR_SUFFIX in one.name:
            remove_folder(one)
        elif is_step(one) and not any(one.iterdir()):
            one.rmdir()  # Orbax would take it for the latest checkpoint


def _to_disk(folder: Folder) -> None:
    if isinstance(folder, Path):
        for path in (*folder.rglob("*"), folder, folder.parent):
            to_disk(path)


def _plain(value: Mapping[str, object]) -> dict[str, Any]:
    """A copy made of JSON types; TypeError here rather than in the background."""
    return json.loads(json.dumps(value))
