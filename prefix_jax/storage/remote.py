"""Work folders in a bucket, gs://BUCKET/FOLDER.

A bucket has no appending, no renaming and no locks. So a run keeps its files in a
folder of this machine, which is copied to the bucket at every checkpoint; the
checkpoints themselves Orbax writes there directly.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

from prefix_jax.distributed import is_first
from prefix_jax.errors import InputError

_Stamp = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the files of a run are."""

    folder: Path
    """On this machine."""
    bucket: epath.Path | None = None
    """What `folder` is a copy of, where that is in a bucket."""
    _known: dict[Path, _Stamp] = dataclasses.field(default_factory=dict)
    """Files as they are in the bucket."""

    @property
    def home(self) -> Path | epath.Path:
        """What the user calls the work folder; the checkpoints are there."""
        return self.folder if self.bucket is None else self.bucket

    def fetch(self, names: Sequence[str]) -> None:
        """Copy files, and the folders with these names, from the bucket."""
        if self.bucket is None or not self.bucket.is_dir():
            return
        for path in self.bucket.iterdir():
            if not path.is_dir():
                self._fetch(path, self.folder / path.name)
            elif path.name in names:
                (self.folder / path.name).mkdir(exist_ok=True)
                for inner in path.iterdir():
                    self._fetch(inner, self.folder / path.name / inner.name)

    def _fetch(self, path: epath.Path, to: Path) -> None:
        to.write_bytes(path.read_bytes())
        self._known[to] = _stamp(to)

    def keep(self) -> None:
        """Copy to the bucket what is new; the first process does.

        File by file: a process that is killed meanwhile leaves some as they were.
        """
        if self.bucket is None:
            return
        fresh = [path for path in sorted(self.folder.rglob("*")) if self._is_new(path)]
        # Asked only then: whoever reads may not have joined the other processes yet.
        if not fresh or not is_first():
            return
        for path in fresh:
            there = self.bucket.joinpath(*path.relative_to(self.folder).parts)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())
            self._known[path] = _stamp(path)

    def _is_new(self, path: Path) -> bool:
        # Names that begin with a dot are of files that are being written.
        inside = path.relative_to(self.folder).parts
        hidden = any(part.startswith(".") for part in inside)
        return not hidden and path.is_file() and self._known.get(path) != _stamp(path)


@contextlib.contextmanager
def at_hand(workdir: Path, names: Sequence[str] = ()) -> Iterator[Place]:
    """The files of a work folder on this machine; of a bucket's a copy, with the
    folders `names` in it, which is kept (`Place.keep`) when the context is left.

    Two runs must not be given the same folder in a bucket: nothing there stops them.
    Raises InputError where gcsfs is not installed, and for other addresses.
    """
    address = in_bucket(workdir)
    if address is None:
        yield Place(workdir)
        return
    with tempfile.TemporaryDirectory(prefix="prefix_jax_") as folder:
        place = Place(Path(folder), epath.Path(address))
        try:
            place.fetch(names)
        except ImportError:
            raise InputError(
                f"{address} needs gcsfs, which is not installed; "
                "pip install 'prefix_jax[gcs]'"
            ) from None
        try:
            yield place
            place.keep()
        except InputError as error:
            with contextlib.suppress(OSError):
                place.keep()  # what the message speaks of
            raise InputError(str(error).replace(folder, address)) from error


def in_bucket(folder: Path) -> str | None:
    """The address of a folder in a bucket, of which pathlib has left one slash.

    Raises InputError for other addresses than gs://.
    """
    found = re.fullmatch(r"([a-z0-9]+):/{1,2}([^/].*)", str(folder))
    if found is None:
        return None
    if found[1] != "gs":
        raise InputError(
            f"{found[1]}://{found[2]} is in no kind of store that we know; give a "
            "folder, or gs://BUCKET/FOLDER"
        )
    return f"gs://{found[2]}"


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
