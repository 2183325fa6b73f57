"""Checksums of a folder's files, to find what was damaged since they were written.

    SHA256SUMS    a line that says of how many files, then what `sha256sum` prints

`sha256sum -c SHA256SUMS` checks it too.
"""

import hashlib
import re
from pathlib import Path

from prefix_jax.errors import InputError

SUMS = "SHA256SUMS"
FREE = ("README.md",)
"""Files that people are meant to edit."""
_HEAD = re.compile(r"# ([0-9]{1,6}) files\n")
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)\n")


def seal(folder: Path) -> None:
    """Write the checksums of the files that are in `folder` now."""
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.name not in (SUMS, *FREE)
    )
    sums = [f"{_digest(folder / name)}  {name}\n" for name in names]
    text = f"# {len(sums)} files\n" + "".join(sums)
    (folder / SUMS).write_text(text, encoding="utf-8")


def check_seal(folder: Path) -> None:
    """InputError, naming the file, where one is not as it was sealed.

    A folder without checksums passes, as others' adapters and backbones, and so does a
    file that came later.
    """
    path = folder / SUMS
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", "replace")
    head, *lines = text.splitlines(keepends=True) or [""]
    number, sums = _HEAD.fullmatch(head), [_LINE.fullmatch(line) for line in lines]
    if number is None or int(number[1]) != len(sums) or None in sums:
        raise _damaged(path, "is not what was written")
    for match in filter(None, sums):
        expected, name = match.groups()
        if not (folder / name).is_file():
            raise _damaged(folder / name, "is missing")
        if (found := _digest(folder / name)) != expected:
            raise _damaged(
                folder / name,
                f"is not what was written (sha256 {found[:12]}..., in {SUMS} "
                f"{expected[:12]}...)",
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, how: str) -> InputError:
    return InputError(
        f"{path} {how}: it was damaged or changed after it was saved; copy the folder "
        f"again from where it was written or, if you changed it yourself, remove {SUMS}"
    )
