"""A prefix for PEFT: its files, our metadata, and a card."""

import dataclasses
import shutil
from pathlib import Path

from prefix_jax.errors import InputError
from prefix_jax.model.loading import OWN_NAMES, load_backbone
from prefix_jax.storage.artifact import other_backbone, read_stored
from prefix_jax.storage.card import card, is_hub_name
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

    The tensor is the same, byte for byte. `base_model` is what adapter_config.json, the
    card and our own metadata call the model: a name on the hub, which is not checked,
    or a folder, which must hold the prefix's own backbone and is written as a whole
    path. None: PEFT is told no name, and who loads it has to give PEFT the model. (The
    library's own names, such as `tiny`, stay in our metadata.) Returns what the
    exported prefix says of itself.
    Raises InputError as `check_exportable`, for a `base_model` that is neither or holds
    another backbone, and if `out` holds other things.
    """
    folder, out = Path(folder).absolute(), Path(out).absolute()
    if folder in out.parents:
        raise InputError(f"{out} is inside {folder}; give a folder beside it")
    metadata = check_exportable(folder)
    length = metadata.length
    assert length is not None
    shape = read_shape(folder, metadata)
    check_replaceable(out)
    if base_model is not None:
        base_model = _base_model(base_model, folder, metadata)
        if metadata.backbone_name not in OWN_NAMES:
            metadata = _renamed(metadata, base_model)
    size = (folder / PEFT_TENSORS).stat().st_size
    with replaced(out) as fresh:
        shutil.copyfile(folder / PEFT_TENSORS, fresh / PEFT_TENSORS)
        described = adapter_config(shape, length, base_model, metadata.kind)
        write_json(fresh / PEFT_CONFIG, described)
        write_json(fresh / OWN_CONFIG, metadata.record())
        write_text(fresh / CARD, card(metadata, base_model, size))
    return metadata


def _base_model(name: str, folder: Path, metadata: Metadata) -> str:
    """What PEFT is to call the backbone; InputError where that cannot be it."""
    place = Path(name).expanduser().resolve()
    if name not in OWN_NAMES and place.is_dir():
        if why := other_backbone(folder, metadata, load_backbone(place)):
            raise InputError(
                f"the base model in {name} is not the backbone that the prefix in "
                f"{folder} was trained with: {why}; give the folder of that one"
            )
        return str(place)
    if name in OWN_NAMES or not is_hub_name(name):
        raise InputError(
            f"base model {name} is neither a name on the Hugging Face hub, such as "
            "openai-community/gpt2-medium, nor a folder"
        )
    return name


def _renamed(metadata: Metadata, name: str) -> Metadata:
    """With another name for its backbone, in the recipe too."""
    old, recipe = metadata.backbone_name, metadata.recipe
    section = (recipe or {}).get("backbone")
    if recipe and isinstance(section, dict) and section.get("name") == old:
        recipe = {**recipe, "backbone": {**section, "name": name}}
    return dataclasses.replace(metadata, backbone_name=name, recipe=recipe)
