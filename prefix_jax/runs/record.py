"""What a run writes down about itself, and whether a workdir belongs to it."""

import contextlib
import dataclasses
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock
import jax

from prefix_jax.config import Config
from prefix_jax.distributed import is_first
from prefix_jax.errors import InputError, shown
from prefix_jax.model.tensor_files import read_json
from prefix_jax.storage.files import write_json
from prefix_jax.storage.remote import at_hand, in_bucket
from prefix_jax.storage.versions import library_versions

# What may change between two calls that continue one run: it does not touch the steps,
# or (where model and data lie) a fingerprint stands for it.
FREE = {
    "decode": None,
    "score": None,
    "mesh": None,
    "backbone": {"name"},
    "data": {"path"},
    "train": {
        "eval_every",
        "samples",
        "checkpoint_every",
        "log_every",
        "tensorboard",
        "on_nonfinite",
        "on_save_error",
        "watchdog",
    },
}


def check_folder(workdir: Path) -> None:
    """Before any work, so that it is not lost: InputError if `workdir` is a file, or
    in a bucket, from which `storage.remote.at_hand` has not taken it."""
    if address := in_bucket(workdir):
        raise InputError(
            f"--workdir {address} is in a bucket, where `train` and `evaluate` of one "
            "run work only; give a folder"
        )
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir} is a file; give a folder")


def check_run(config: Config, workdir: Path) -> None:
    """Before anything is loaded: InputError if `workdir` holds a run of other settings.

    Only when the data are read can `write_record` compare the fingerprints too.
    """
    check_folder(workdir)
    if (workdir / "config.json").exists():
        record = {"config": config.resolved().to_dict(), "fingerprints": {}}
        try:
            there = read_record(workdir)
        except InputError as error:
            raise InputError(
                f"{error}. If this command has the run's own options, remove that "
                "file: training writes it anew and goes on from the checkpoints"
            ) from error
        _check_same(there, record, workdir)


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Context in which no other process trains in `workdir`, which is made.

    The system ends the lock with the process, however that ends. Raises InputError
    where another process holds it, or `workdir` cannot be written in.
    """
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # The processes of one run share its folder.
            if is_first():
                stack.enter_context(lock)
        except filelock.Timeout:
            raise InputError(
                f"another process is training in {workdir}; wait until it has ended, "
                "or use another --workdir"
            ) from None
        except OSError as error:
            raise _not_writable(workdir, error) from error
        yield


def write_record(
    config: Config, fingerprints: Mapping[str, str], workdir: Path
) -> None:
    """Write `config.json`, or check that the one there tells of the same run.

    `fingerprints`: of what the run is made of besides its settings, by name.
    Of several processes the first one writes, all of them check.
    Raises InputError naming every field and fingerprint that differs.
    """
    path = workdir / "config.json"
    call = {
        "versions": {"python": platform.python_version(), **library_versions()},
        "devices": [device.device_kind for device in jax.devices()],
    }
    record = {
        "config": config.to_dict(),
        "fingerprints": dict(fingerprints),
        "calls": [call],
    }
    if path.exists():
        old = read_record(workdir)
        _check_same(old, record, workdir)
        # A run that goes on elsewhere may go on in other bits: that must be seen.
        calls = list(old.get("calls", []))
        record["calls"] = calls if calls[-1:] == [call] else [*calls, call]
    if not is_first():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise _not_writable(workdir, error) from error


def read_record(workdir: Path) -> dict:
    """The record in `workdir`; InputError if it is missing or cannot be read."""
    check_folder(workdir)
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} holds no run (no config.json); train there first, or check "
            "--workdir"
        )
    record = read_json(path)
    if not isinstance(record.get("config"), dict):
        raise InputError(
            f"{path} is not a run's record: it has no `config`; give the run's folder "
            "as --workdir"
        )
    for name, fields in record["config"].items():
        if not isinstance(fields, dict):
            raise InputError(
                f"{path}: section {name} is {shown(fields)}; expected an object of "
                "its fields"
            )
    calls, prints = record.get("calls", []), record.get("fingerprints", {})
    if not (
        isinstance(prints, dict)
        and isinstance(calls, list)
        and all(
            isinstance(call, dict) and isinstance(call.get("versions", {}), dict)
            for call in calls
        )
    ):
        raise InputError(
            f"{path} is not a run's record: its `fingerprints` or `calls` are not what "
            "`prefix-jax train` writes"
        )
    return record


def recorded_config(workdir: Path) -> Config:
    """The recipe of the run in `workdir`, resolved; InputError as `read_record`.

    `workdir` may be in a bucket.
    """
    with at_hand(workdir) as place:
        recorded = read_record(place.folder)["config"]
        try:
            return Config.from_dict(recorded)
        except InputError as error:
            raise InputError(f"{place.folder / 'config.json'}: {error}") from error


def _check_same(old: dict, new: dict, workdir: Path) -> None:
    differences = []
    defaults = dataclasses.asdict(Config())
    for section, fields in new["config"].items():
        free = FREE.get(section, set())
        if free is None:
            continue
        for field, value in fields.items():
            # What the version that wrote it had no setting for, it did as by default.
            usual = defaults[section].get(field)
            before = old["config"].get(section, {}).get(field, usual)
            before, now = (
                list(x) if isinstance(x, tuple) else x for x in (before, value)
            )
            if field not in free and before != now:
                differences.append(f"{section}.{field}: {before!r} there, {now!r} now")
    for name, now in new["fingerprints"].items():
        before = old.get("fingerprints", {}).get(name)
        if before != now and name == "backbone":
            names = (x["config"].get("backbone", {}).get("name") for x in (old, new))
            before, now = (
                f"{x} ({own})" for x, own in zip(names, (before, now), strict=True)
            )
        if before != now:
            differences.append(f"the {name}: {before!r} there, {now!r} now")
    if differences:
        raise InputError(
            f"{workdir} holds another run:\n  "
            + "\n  ".join(differences)
            + "\nuse another --workdir, or the same settings, backbone and data to go "
            "on with that run"
        )


def _not_writable(workdir: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write in {workdir}: {error.strerror or error}; give another --workdir"
    )
