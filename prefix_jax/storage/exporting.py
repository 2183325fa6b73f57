"""A prefix for PEFT: its files, our metadata, and a card."""

import shutil
from pathlib import Path

from prefix_jax.errors import InputError
from prefix_jax.model.tensor_files import read_json
from prefix_jax.storage.artifact import read_stored
from prefix_jax.storage.card import card
from prefix_jax.storage.files import replaced, write_json, write_text
from prefix_jax.storage.metadata import (
    CARD,
    OWN_CONFIG,
    PEFT_CONFIG,
    PEFT_TENSORS,
    Metadata,
    check_replaceable,
    read_metadata,
    read_shape,
)
from prefix_jax.storage.peft_layout import adapter_config

BUNDLED = "tiny"
"""The backbone that is part of this package: only here can it be found by name."""


def check_exportable(folder: Path) -> Metadata:
    """What the prefix in `folder` says of itself, once it is known to suit PEFT.

    Raises InputError, with the reason, for a prefix that PEFT cannot represent, one of
    PEFT's own, and damaged files.
    """
    metadata = read_metadata(folder)
    if metadata.obstacle is not None:
        raise InputError(
            f"PEFT cannot represent the prefix in {folder}: {metadata.obstacle}. There "
            "it would write something else, so there is no export"
        )
    if not (folder / OWN_CONFIG).is_file():
        raise InputError(
            f"{folder} has no {OWN_CONFIG}: PEFT wrote it, and reads it as it is"
        )
    if metadata.length is None:
        raise InputError(
            f"{folder / OWN_CONFIG} does not say how many positions the prefix has; "
            "export the folder that the training run wrote"
        )
    read_stored(folder, metadata, read_shape(folder, metadata))
    return metadata


def export_prefix(
    folder: Path | str, out: Path | str, *, base_model: str | None = None
) -> Metadata:
    """Copy the prefix in `folder` to `out` as PEFT reads it, with a card.

    The tensor is the same, byte for byte. `base_model`, a name on the hub or a folder,
    is what adapter_config.json calls the model; None: nothing, and who loads it has to
    give PEFT the model. Returns what the prefix says of itself.
    Raises InputError as `check_exportable`, or if `out` holds other things.
    """
    folder, out = Path(folder).absolute(), Path(out).absolute()
    if folder in out.parents:
        raise InputError(f"{out} is inside {folder}; give a folder beside it")
    metadata = check_exportable(folder)
    assert metadata.length is not None
    shape = read_shape(folder, metadata)
    check_replaceable(out)
    own = read_json(folder / OWN_CONFIG)
    if base_model is not None and metadata.backbone_name != BUNDLED:
        own["backbone"] = {**(own.get("backbone") or {}), "name": base_model}
    size = (folder / PEFT_TENSORS).stat().st_size
    with replaced(out) as fresh:
        shutil.copyfile(folder / PEFT_TENSORS, fresh / PEFT_TENSORS)
        described = adapter_config(shape, metadata.length, base_model, metadata.kind)
        write_json(fresh / PEFT_CONFIG, described)
        write_json(fresh / OWN_CONFIG, own)
        write_text(fresh / CARD, card(metadata, base_model, size))
    return metadata
