"""The first positions of a stored prefix as a prefix of its own."""

import dataclasses
from pathlib import Path

from prefix_jax.errors import InputError
from prefix_jax.storage.artifact import read_stored, write_prefix
from prefix_jax.storage.metadata import Metadata, read_metadata, read_shape


def shorten_prefix(
    folder: Path | str, out: Path | str, length: int, *, backbone: str | None = None
) -> Metadata:
    """Store the first `length` positions of the prefix in `folder` in `out`.

    The numbers are the same, and so are the files: PEFT's layout where it had it. It
    is a good prefix where it was trained with that length in `prefix.nested`; scores
    are those of the whole prefix and are left out. `backbone`: name or folder, for a
    prefix of PEFT's that does not say its shape; None: as the prefix says. Returns what
    it says of itself.
    Raises InputError for a length that it does not have, or if `out` holds other
    things.
    """
    folder, out = Path(folder), Path(out).absolute()
    metadata = read_metadata(folder)
    shape = read_shape(folder, metadata, backbone)
    tensor = read_stored(folder, metadata, shape)
    if not 1 <= length <= len(tensor):
        raise InputError(
            f"the prefix in {folder} has {len(tensor)} positions and cannot be cut to "
            f"{length}; expected 1 to {len(tensor)}"
        )
    lengths = metadata.layer_lengths
    if lengths is not None:
        lengths = tuple(min(one, length) for one in lengths)
        lengths = None if min(lengths) == length else lengths
    recipe = metadata.recipe or {}
    shorter = dataclasses.replace(
        metadata,
        length=length,
        layer_lengths=lengths,
        backbone_config=metadata.backbone_config,
        scores=None,
        recipe={**recipe, "shortened": {"from": len(tensor), "to": length}},
    )
    write_prefix(out, tensor[:length], shorter, shape)
    return shorter
