"""Stored prefixes by name, and the bank of them that serves one batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.compose import bank
from prefix_jax.model.kv import KV
from prefix_jax.storage.artifact import load_prefix

KEPT = ("best", "last")
"""Folders of a run that hold its prefix."""


def prefix_folder(given: Path | str) -> Path:
    """The folder itself, or the best prefix of the run that it is the folder of."""
    folder = Path(given)
    best = folder / "best"
    return best if best.is_dir() else folder


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Prefix folders by name, of `FOLDER` or `NAME=FOLDER` each.

    Without a name it is called after the folder, or after the run whose `best` or
    `last` it is. Raises InputError where a name is missing or there twice.
    """
    folders: dict[str, Path] = {}
    for one in given:
        name, separator, path = one.partition("=")
        # A folder's own name may hold "=".
        if not separator or Path(one).exists():
            whole = Path(one).absolute()
            name, path = (whole.parent if whole.name in KEPT else whole).name, one
        if not name or not path:
            raise InputError(f"--prefix {one}: expected FOLDER or NAME=FOLDER")
        if name in folders:
            raise InputError(
                f'two prefixes are called "{name}"; name them: --prefix a=FOLDER '
                "--prefix b=FOLDER"
            )
        folders[name] = prefix_folder(path)
    return folders


def load_bank(
    folders: Mapping[str, Path], backbone: Backbone, backbone_fingerprint: str
) -> KV:
    """The prefixes of these folders as one KV, in their order.

    Raises InputError, naming the folder, as `load_prefix`, and where some shift the
    positions of the text and others do not.
    """
    loaded = {
        name: load_prefix(folder, backbone, backbone_fingerprint=backbone_fingerprint)
        for name, folder in folders.items()
    }
    ways = {_way(kv): name for name, kv in loaded.items()}
    if len(ways) > 1:
        said = " and ".join(f'"{name}" has {way}' for way, name in ways.items())
        raise InputError(
            f"{said}; one batch cannot hold both: give them to commands of their own"
        )
    return bank(list(loaded.values()))


def _way(kv: KV) -> str:
    """How text sees it, in words."""
    words = [f"{kv.position_mode} positions"]
    words += ["its place after the source"] * (kv.placement == "infix")
    words += ["gates"] * kv.own_softmax
    return ", ".join(words)
