"""What a checkpoint's record says of its arrays, for those who need no array.

{"arrays": {"trainable/prefix/keys": {"shape": [2, 3], "dtype": "float32"}}, ...}
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from prefix_jax.errors import InputError
from prefix_jax.model.tensor_files import read_json

Folder = Path | epath.Path
"""On this machine, or in a bucket."""


def trained_numbers(workdir: Path) -> int | None:
    """How many numbers the run in `workdir` trains; None where no checkpoint says."""
    folder = Path(workdir) / "checkpoints"
    steps = [int(path.name) for path in folder.glob("*") if is_step(path)]
    for step in sorted(steps, reverse=True):
        path = folder / str(step) / "meta" / "metadata"
        if path.is_file():
            arrays = read_arrays(path, read_json(path))
            return sum(
                math.prod(facts["shape"])
                for name, facts in arrays.items()
                if name.startswith("trainable/")
            )
    return None


def read_arrays(path: Folder, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Shape and type of each array; InputError where a record does not say them."""
    arrays = record.get("arrays")
    if isinstance(arrays, dict) and all(map(_is_facts, arrays.values())):
        return arrays
    raise InputError(
        f"{path} does not say what the arrays of the checkpoint are; remove the folder "
        "of its step"
    )


def _is_facts(facts: object) -> bool:
    """Whether it has the shape of an array."""
    if not isinstance(facts, dict) or not isinstance(facts.get("shape"), list):
        return False
    sides = facts["shape"]
    return len(sides) <= 32 and all(type(n) is int and 0 <= n < 2**48 for n in sides)


def is_step(folder: Folder) -> bool:
    """Whether it is the folder of a step."""
    return folder.name.isdecimal() and folder.is_dir()
