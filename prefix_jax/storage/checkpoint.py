"""Checkpoints of a run: everything that is Orbax's stays behind this module.

    workdir/checkpoints/<step>/
      state/   the arrays of TrainState by leaf name; no backbone unless it is trained
      data/    position of the data iterator (JSON)
      meta/    format, backbone fingerprint, shape and type of each array, library
               versions, and what the run wants to remember (JSON)

Names, not Python classes, tie the arrays to the state: `trainable/prefix/keys`,
`opt_state/1/0/mu/prefix/keys`, `key`.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental.multihost_utils import sync_global_devices

from prefix_jax.distributed import is_first
from prefix_jax.errors import InputError, first_line
from prefix_jax.learning.split import leaf_names
from prefix_jax.learning.step import TrainState
from prefix_jax.storage.checkpoint_record import Folder, is_step, read_arrays

FORMAT = 1
_ITEMS = ("state", "data", "meta")
_LIBRARIES = (
    "prefix-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
    "tensorflow-datasets",
)
# Where the prefix length stands in the arrays that have it, to name it in errors.
_LENGTH_AXIS = {"trainable/prefix/keys": 1, "trainable/prefix/embedding": 0}


class Restored(NamedTuple):
    """What a checkpoint gives back."""

    state: TrainState
    data_state: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`, the last `keep` of them.

    Writing goes on in the background: what fails there is raised by the next `save` or
    `wait`, or on leaving the context. A process killed while writing leaves the
    checkpoints before as they were. All processes of a run make and use one alike.

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
        except OSError as error:
            raise InputError(
                f"cannot keep checkpoints in {workdir}: {error}"
            ) from error
        if is_first() and isinstance(self.folder, Path):
            # Orbax would take an empty step folder for the latest checkpoint. (In a
            # bucket there are none.)
            for folder in filter(is_step, self.folder.iterdir()):
                if not any(folder.iterdir()):
                    folder.rmdir()
        sync_global_devices("checkpoints")
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=_ITEMS,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,
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
        arrays = _to_arrays(state)
        record = {
            "format": FORMAT,
            "backbone": self._fingerprint,
            "arrays": {name: _facts(array) for name, array in arrays.items()},
            "versions": library_versions(),
            "run": meta,
        }
        data, record = _plain(data_state), _plain(record)
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

    def wait(self) -> None:
        """Blocks until all is on disk; raises OSError where writing failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def restore(self, like: TrainState) -> Restored | None:
        """The newest checkpoint, in the structure and on the devices of `like`.

        None if there is none. Raises InputError where the checkpoint is of another
        backbone or another recipe, and names what differs.
        """
        self.wait()
        step = self.latest_step
        if step is None:
            return None
        folder = self.folder / str(step)
        missing = [item for item in _ITEMS if not (folder / item).is_dir()]
        if missing:
            raise InputError(
                f"checkpoint {folder} is incomplete: {', '.join(missing)} missing; "
                f"{_REMEDY}"
            )
        with _read(folder):
            record, data_state = self._read_json(step)
        if not isinstance(record, dict) or not {"backbone", "run"} <= record.keys():
            raise InputError(f"checkpoint {folder} has no record; {_REMEDY}")
        self._check_origin(folder, record)
        wanted = _to_arrays(like)
        _check_arrays(folder, read_arrays(folder, record), wanted)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in wanted.items()
        }
        with _read(folder):
            found = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        return Restored(_from_arrays(found["state"], like), data_state, record["run"])

    def _read_json(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        read = ocp.args.JsonRestore()
        found = self._manager.restore(
            step, args=ocp.args.Composite(data=read, meta=read)
        )
        return found["meta"], found["data"]

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
        complete = sorted(int(p.name) for p in self.folder.glob("*") if is_step(p))
        return OSError(
            f"a checkpoint could not be written in {self.folder} "
            f"({first_line(error)[:300]}); steps there: "
            f"{', '.join(map(str, complete)) or 'none'}"
        )


_REMEDY = "remove that folder to go on from the checkpoint before it"


@contextlib.contextmanager
def _read(folder: Folder) -> Iterator[None]:
    """InputError for what Orbax makes of damaged files, which can be anything."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # the device's memory
            raise
        raise InputError(
            f"checkpoint {folder} cannot be read ({first_line(error)[:300]}); {_REMEDY}"
        ) from error


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that decide what a run computes."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _plain(value: Mapping[str, object]) -> dict[str, Any]:
    """A copy made of JSON types; TypeError here rather than in the background."""
    return json.loads(json.dumps(value))


def _raw(state: TrainState) -> TrainState:
    """The state with its typed random key as the numbers that can be stored."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def _to_arrays(state: TrainState) -> dict[str, jax.Array]:
    raw = _raw(state)
    names, leaves = leaf_names(raw), jax.tree.leaves(raw)
    if len(set(names)) != len(names):
        raise ValueError(f"leaf names are not unique: {names}")
    return dict(zip(names, leaves, strict=True))


def _from_arrays(arrays: Mapping[str, jax.Array], like: TrainState) -> TrainState:
    raw = _raw(like)
    leaves = [arrays[name] for name in leaf_names(raw)]
    state = jax.tree.unflatten(jax.tree.structure(raw), leaves)
    key = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key))
    return dataclasses.replace(state, key=key)


def _facts(array: jax.Array) -> dict[str, Any]:
    """What is remembered of an array besides its bytes."""
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _check_arrays(
    folder: Folder,
    saved: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, jax.Array],
) -> None:
    """Orbax itself would cast a wrong type silently and fail obscurely on a shape."""
    asked = {name: _facts(array) for name, array in wanted.items()}
    for name, axis in _LENGTH_AXIS.items():
        if name in saved and name in asked:
            there, here = saved[name]["shape"][axis], asked[name]["shape"][axis]
            if there != here:
                raise InputError(
                    f"checkpoint {folder} has a prefix of length {there}, the run asks "
                    f"for {here}: use another --workdir, or --prefix.length {there}"
                )

    def text(facts):
        return f"{facts['dtype']}{facts['shape']}" if facts else "nothing"

    differences = [
        f"{name}: saved {text(saved.get(name))}, this run {text(asked.get(name))}"
        for name in sorted(saved.keys() | asked.keys())
        if saved.get(name) != asked.get(name)
    ]
    if differences:
        more = len(differences) - 6
        shown = "; ".join(differences[:6]) + (f"; and {more} more" if more > 0 else "")
        raise InputError(
            f"checkpoint {folder} is of another recipe ({shown}): "
            "use another --workdir, or the options that the run was started with"
        )
