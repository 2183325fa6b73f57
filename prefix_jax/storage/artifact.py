"""A trained prefix on disk: PEFT's adapter layout, and what PEFT has no field for.

    folder/
      adapter_config.json          PEFT's description
      adapter_model.safetensors    PEFT's tensor (see peft_layout)
      prefix_jax.json              position mode, backbone, what its prompts are;
                                   scores and recipe as a record that nothing reads
      README.md                    its card, if it was exported (see exporting)

PEFT shifts the positions of the text by P, always. A prefix of unshifted positions
would load there and write nonsense, so its tensor is in `prefix_jax.safetensors`, there
is no adapter_config.json, and `prefix_jax.json` says why.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from prefix_jax.data_config import Task
from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix import Prefix
from prefix_jax.model.tensor_files import read_json
from prefix_jax.model.weights import fingerprint
from prefix_jax.prefix_config import PositionMode
from prefix_jax.storage.files import replaced, write_json
from prefix_jax.storage.peft_layout import (
    adapter_config,
    check_tensor,
    differing,
    from_tensor,
    read_tensor,
    to_tensor,
    write_tensor,
)

T = TypeVar("T")

FORMAT = 1
PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
OWN_CONFIG, OWN_TENSORS = "prefix_jax.json", "prefix_jax.safetensors"
CARD = "README.md"
_FILES = {PEFT_CONFIG, PEFT_TENSORS, OWN_CONFIG, OWN_TENSORS, CARD}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a stored prefix says of itself; None where its files do not say."""

    length: int | None
    position_mode: PositionMode
    backbone_name: str | None
    backbone_fingerprint: str | None
    backbone_config: dict[str, Any] | None
    backbone_dtype: str | None
    task: str | None
    """`data.task` of its training."""
    e2e: bool | None
    """Whether its sources were E2E meaning representations, linearised."""
    recipe: dict[str, Any] | None
    scores: dict[str, Any] | None


def save_prefix(
    folder: Path | str,
    prefix: Prefix | KV,
    *,
    backbone: GPT2,
    scores: Mapping[str, object] | None = None,
    recipe: Mapping[str, object] | None = None,
    task: Task | None = None,
    e2e: bool = False,
    base_model_name: str | None = None,
    backbone_fingerprint: str | None = None,
) -> None:
    """Store a prefix, folded, in place of what `folder` held of another prefix.

    `scores` and `recipe` are kept with it as JSON. `task` and `e2e` (whether sources
    are E2E's meaning representations) say what a prompt for it is; None: text to
    continue. `backbone_fingerprint` saves computing it anew. The files change all at
    once (`storage.files.replaced`).
    Raises InputError for a prefix that does not fit the backbone or is not finite, or a
    folder that holds other things.
    """
    folder = Path(folder).absolute()
    kv = prefix if isinstance(prefix, KV) else prefix()
    tensor = to_tensor(kv, backbone.config)
    check_tensor(tensor, "the prefix", backbone.config)
    shifted = kv.position_mode == "shifted"
    record = {
        "format": FORMAT,
        "kind": "prefix",
        "length": kv.length,
        "position_mode": kv.position_mode,
        "peft": "readable"
        if shifted
        else "not readable: PEFT always shifts the positions of the text",
        "backbone": {
            "name": base_model_name,
            "dtype": str(backbone.dtype),
            "fingerprint": backbone_fingerprint or fingerprint(backbone),
            "config": dataclasses.asdict(backbone.config),
        },
        "task": task,
        "e2e": e2e,
        "scores": scores,
        "recipe": recipe,
    }
    files = {OWN_CONFIG: record}
    if shifted:
        files[PEFT_CONFIG] = adapter_config(backbone.config, kv.length, base_model_name)
    check_replaceable(folder)
    with replaced(folder) as fresh:
        write_tensor(fresh / (PEFT_TENSORS if shifted else OWN_TENSORS), tensor)
        for name, content in files.items():
            write_json(fresh / name, content)


def load_prefix(
    folder: Path | str, backbone: GPT2, *, backbone_fingerprint: str | None = None
) -> KV:
    """The prefix [L 1 P H K] in f32 that is stored in `folder`, by us or by PEFT.

    Raises InputError where there is none, its files are damaged, it holds NaN or
    infinity, or it was trained for another backbone (shape, configuration or weights;
    what PEFT wrote can be checked for its shape only).
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    path = folder / PEFT_TENSORS
    if metadata.position_mode == "unshifted":
        path = folder / OWN_TENSORS
    tensor = read_tensor(path)
    config = backbone.config
    _check_backbone(folder, metadata, backbone, backbone_fingerprint)
    check_tensor(tensor, str(path), config)
    if metadata.length is not None and metadata.length != len(tensor):
        raise InputError(
            f"{path} holds {len(tensor)} positions, but the description beside it says "
            f"{metadata.length}; the files do not belong together"
        )
    if metadata.position_mode == "shifted":
        config.check_room(len(tensor), f"the prefix in {path}")
    return from_tensor(tensor, config, metadata.position_mode)


def read_metadata(folder: Path | str) -> Metadata:
    """What the prefix in `folder` says of itself; little, if PEFT wrote it.

    Raises InputError where `folder` holds no prefix, or not one that can be read.
    """
    folder = Path(folder)
    own = _read_json(folder / OWN_CONFIG)
    peft = _read_json(folder / PEFT_CONFIG)
    if own is None and peft is None:
        there = (
            sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        )
        raise InputError(
            f"{folder} holds no prefix (no {OWN_CONFIG} or {PEFT_CONFIG}); "
            + (
                f"there is {', '.join(there[:8])}"
                if there
                else "it is not there, or empty"
            )
        )
    if peft is not None and peft.get("peft_type") != "PREFIX_TUNING":
        raise InputError(
            f"{folder / PEFT_CONFIG}: peft_type is {peft.get('peft_type')!r}; only "
            "'PREFIX_TUNING' can be read (`prefix-jax import` makes one of "
            "'PROMPT_TUNING')"
        )
    if own is None:
        assert peft is not None
        own = {
            "format": FORMAT,
            "kind": "prefix",
            "length": peft.get("num_virtual_tokens"),
            "position_mode": "shifted",
            "backbone": {"name": peft.get("base_model_name_or_path")},
        }
    if own.get("format") != FORMAT or own.get("kind") != "prefix":
        raise InputError(
            f"{folder / OWN_CONFIG}: format {own.get('format')!r}, kind "
            f"{own.get('kind')!r}; this version of prefix_jax reads format {FORMAT}, "
            "kind 'prefix'"
        )
    mode: Any = own.get("position_mode")
    if mode not in get_args(PositionMode):
        raise InputError(
            f"{folder / OWN_CONFIG}: position_mode is {mode!r}; expected one of "
            f"{', '.join(get_args(PositionMode))}"
        )
    base = _get(own, "backbone", dict, folder) or {}
    return Metadata(
        length=_get(own, "length", int, folder),
        position_mode=mode,
        backbone_name=_get(base, "name", str, folder),
        backbone_fingerprint=_get(base, "fingerprint", str, folder),
        backbone_config=_get(base, "config", dict, folder),
        backbone_dtype=_get(base, "dtype", str, folder),
        task=_get(own, "task", str, folder),
        e2e=_get(own, "e2e", bool, folder),
        recipe=_get(own, "recipe", dict, folder),
        scores=_get(own, "scores", dict, folder),
    )


def read_shape(folder: Path | str, metadata: Metadata) -> GPT2Config:
    """The shape of the backbone that the prefix in `folder` is for.

    PEFT writes layers, heads and width only; the rest is GPT-2's default then. Raises
    InputError where the files do not say.
    """
    if metadata.backbone_config is not None:
        place, fields = Path(folder) / OWN_CONFIG, metadata.backbone_config
    else:
        place = Path(folder) / PEFT_CONFIG
        peft = _read_json(place) or {}
        names = {
            "n_layer": "num_layers",
            "n_head": "num_attention_heads",
            "n_embd": "token_dim",
        }
        fields: dict[str, Any] = {
            ours: peft.get(theirs) for ours, theirs in names.items()
        }
    try:
        return GPT2Config(**fields)
    except (TypeError, InputError) as error:
        raise InputError(f"{place} does not describe a GPT-2: {error}") from None


def _get(record: dict[str, Any], name: str, kind: type[T], folder: Path) -> T | None:
    value = record.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise InputError(
        f"{folder}: {name} in the description of the prefix is {value!r}; expected "
        f"{kind.__name__} or null"
    )


def _check_backbone(
    folder: Path, metadata: Metadata, backbone: GPT2, given: str | None
) -> None:
    """InputError if the prefix is another backbone's, by configuration or weights."""
    peft = _read_json(folder / PEFT_CONFIG) or {}
    differences = differing(peft, backbone.config)
    expected = metadata.backbone_fingerprint
    mine = (given or fingerprint(backbone)) if expected is not None else None
    if expected != mine:
        here = dataclasses.asdict(backbone.config)
        differences += [
            f"{field} {value!r} there, {here.get(field)!r} here"
            for field, value in (metadata.backbone_config or {}).items()
            if here.get(field) != value
        ]
    if differences:
        what = f"its configuration differs: {'; '.join(differences)}"
    elif expected != mine:
        what = f"its weights differ (fingerprint {expected} there, {mine} here)"
    else:
        return
    raise InputError(
        f"the prefix in {folder} was trained for another backbone"
        + (f", {metadata.backbone_name!r}" if metadata.backbone_name else "")
        + f": {what}; load the backbone that it was trained with"
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None if there is no such file."""
    return read_json(path) if path.is_file() else None


def check_replaceable(folder: Path) -> None:
    """Saving replaces the whole folder, so it must hold nothing else."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the prefix")
    others = {path.name for path in folder.glob("*")} - _FILES
    if others:
        raise InputError(
            f"{folder} holds other things ({', '.join(sorted(others)[:5])}); "
            "give a folder of its own for the prefix"
        )
