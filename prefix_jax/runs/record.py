"""What a run writes down about itself, and whether a workdir belongs to it."""

import json
import platform
from pathlib import Path

import jax

from prefix_jax.config import Config
from prefix_jax.errors import InputError
from prefix_jax.storage.checkpoint import library_versions

# What may change between two calls that continue one run: it does not touch the steps.
FREE = {
    "decode": None,
    "mesh": None,
    "train": {
        "eval_every",
        "eval_batches",
        "samples",
        "checkpoint_every",
        "log_every",
        "tensorboard",
    },
}


def write_record(config: Config, fingerprint: str, workdir: Path) -> None:
    """Write `config.json`, or check that the one there tells of the same run.

    Raises InputError naming every field that differs.
    """
    path = workdir / "config.json"
    record = {
        "config": config.to_dict(),
        "backbone_fingerprint": fingerprint,
        "versions": {
            "python": platform.python_version(),
            **library_versions(),
        },
        "devices": [device.device_kind for device in jax.devices()],
    }
    if path.exists():
        _check_same(read_record(workdir), record, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(workdir: Path) -> dict:
    """The record in `workdir`; InputError if it is missing or cannot be read."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} holds no run (no config.json); train there first, or check "
            "--workdir"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def _check_same(old: dict, new: dict, workdir: Path) -> None:
    differences = []
    for section, fields in new["config"].items():
        free = FREE.get(section, set())
        if free is None:
            continue
        for field, value in fields.items():
            before = old["config"].get(section, {}).get(field)
            now = list(value) if isinstance(value, tuple) else value
            if field not in free and before != now:
                differences.append(f"{section}.{field}: {before!r} there, {now!r} now")
    if old["backbone_fingerprint"] != new["backbone_fingerprint"]:
        differences.append("the backbone's weights or configuration")
    if differences:
        raise InputError(
            f"{workdir} holds a run of another recipe:\n  "
            + "\n  ".join(differences)
            + "\nuse another --workdir, or the same settings to go on with that run"
        )
