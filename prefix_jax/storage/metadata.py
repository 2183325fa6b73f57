"""What a stored prefix says of itself, and where its tensor lies.

    folder/
      adapter_config.json          PEFT's description
      adapter_model.safetensors    PEFT's tensor (see peft_layout)
      prefix_jax.json              what PEFT has no field for: how the text sees it,
                                   backbone, what its prompts are; scores and recipe
                                   (of which `Metadata.recorded` reads)
      SHA256SUMS                   checksums of these (see seal)
      README.md                    its card, if it was exported (see exporting)

A prefix that PEFT would load and misread (`Metadata.obstacle`) is not offered to it:
its tensor is in `prefix_jax.safetensors`, there is no adapter_config.json, and
`prefix_jax.json` says why.
"""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, get_args

from prefix_jax.checks import check
from prefix_jax.config import FIELDS
from prefix_jax.errors import (
    NEAR_NAME,
    InputError,
    closest,
    json_kind,
    json_value,
    shown,
)
from prefix_jax.model.families import shape_of
from prefix_jax.model.loading import load_config
from prefix_jax.model.shape import Shape
from prefix_jax.model.tensor_files import read_json
from prefix_jax.prefix_config import Placement, PositionMode
from prefix_jax.seal import SUMS, check_seal
from prefix_jax.storage.peft_layout import PEFT_TYPES, Kind, differing

T = TypeVar("T")

FORMAT = 1
PEFT_CONFIG, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
OWN_CONFIG, OWN_TENSORS = "prefix_jax.json", "prefix_jax.safetensors"
CARD = "README.md"
FILES = {PEFT_CONFIG, PEFT_TENSORS, OWN_CONFIG, OWN_TENSORS, CARD, SUMS}


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a stored prefix says of itself; None where its files do not say."""

    length: int | None
    kind: Kind = "prefix"
    """Whether keys and values are stored, or embeddings that the backbone reads."""
    position_mode: PositionMode = "shifted"
    placement: Placement = "prefix"
    own_softmax: bool = False
    """Gated: the text has a softmax of its own for it, its values hold the gates."""
    layer_lengths: tuple[int, ...] | None = None
    """Positions in each layer; None: `length` in all. The tensor has zeros for the
    others."""
    backbone_name: str | None = None
    backbone_fingerprint: str | None = None
    backbone_config: dict[str, Any] | None = None
    backbone_dtype: str | None = None
    task: str | None = None
    """`data.task` of its training."""
    e2e: bool | None = None
    """Whether its sources were E2E meaning representations, linearised."""
    recipe: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None

    @property
    def obstacle(self) -> str | None:
        """Why PEFT cannot represent it; None: it can."""
        reasons = []
        if self.placement != "prefix":
            reasons.append(
                "it is an infix, between source and target, and PEFT puts every prefix "
                "before the whole text"
            )
        if self.own_softmax:
            reasons.append("it is gated, and in PEFT prefix and text share one softmax")
        if self.layer_lengths is not None:
            reasons.append(
                "its layers have different positions, and PEFT gives all the same"
            )
        if self.position_mode != "shifted":
            reasons.append(
                f"it has {self.position_mode} positions, and PEFT always starts the "
                "text after the prefix"
            )
        return "; ".join(reasons) or None

    def recorded(self, name: str, default: Any = None) -> Any:
        """A value of the recipe, such as `data.labels`; `default` where there is none.

        The rest of the recipe is not read: it may be of a later version. Raises
        InputError for a value that the field does not take.
        """
        section, _, field = name.partition(".")
        fields = (self.recipe or {}).get(section)
        value = fields.get(field, default) if isinstance(fields, dict) else default
        value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        check(f"the recipe of the prefix: {name}", value, FIELDS[name])
        return value

    @property
    def tensors(self) -> str:
        """Name of the file that holds its tensor."""
        return PEFT_TENSORS if self.obstacle is None else OWN_TENSORS

    def record(self) -> dict[str, Any]:
        """What `prefix_jax.json` holds."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "length": self.length,
            "position_mode": self.position_mode,
            "placement": self.placement,
            "own_softmax": self.own_softmax,
            "layer_lengths": self.layer_lengths,
            "peft": "readable"
            if self.obstacle is None
            else f"not readable: {self.obstacle}",
            "backbone": {
                "name": self.backbone_name,
                "dtype": self.backbone_dtype,
                "fingerprint": self.backbone_fingerprint,
                "config": self.backbone_config,
            },
            "task": self.task,
            "e2e": self.e2e,
            "scores": self.scores,
            "recipe": self.recipe,
        }


def read_metadata(folder: Path | str) -> Metadata:
    """What the prefix in `folder` says of itself; little, if PEFT wrote it.

    Raises InputError where `folder` holds no prefix, or not one that can be read, or
    its files are not those that were saved.
    """
    folder = Path(folder)
    check_seal(folder)
    own = read_object(folder / OWN_CONFIG)
    peft = read_object(folder / PEFT_CONFIG)
    if own is None and peft is None:
        raise _no_prefix(folder)
    kinds = {peft_type: kind for kind, peft_type in PEFT_TYPES.items()}
    if peft is not None and peft.get("peft_type") not in list(kinds):
        given = shown(peft.get("peft_type"))
        raise InputError(
            f"{folder / PEFT_CONFIG}: peft_type is {given}; only {' and '.join(kinds)} "
            "can be read"
        )
    if own is None:
        assert peft is not None
        own = {
            "format": FORMAT,
            "kind": kinds[peft["peft_type"]],
            "length": peft.get("num_virtual_tokens"),
            "backbone": {"name": peft.get("base_model_name_or_path")},
        }
    if own.get("format") != FORMAT or own.get("kind") not in get_args(Kind):
        raise InputError(
            f"{folder / OWN_CONFIG}: format {shown(own.get('format'))}, kind "
            f"{shown(own.get('kind'))}; this version of prefix_jax reads format "
            f"{FORMAT}, kind {' or '.join(map(repr, get_args(Kind)))}"
        )
    base = _get(own, "backbone", dict, folder) or {}
    return Metadata(
        length=_get(own, "length", int, folder),
        kind=own["kind"],
        position_mode=_choice(own, "position_mode", PositionMode, folder),
        placement=_choice(own, "placement", Placement, folder),
        own_softmax=_get(own, "own_softmax", bool, folder) or False,
        layer_lengths=_layer_lengths(own, folder),
        backbone_name=_get(base, "name", str, folder),
        backbone_fingerprint=_get(base, "fingerprint", str, folder),
        backbone_config=_get(base, "config", dict, folder),
        backbone_dtype=_get(base, "dtype", str, folder),
        task=_get(own, "task", str, folder),
        e2e=_get(own, "e2e", bool, folder),
        recipe=_get(own, "recipe", dict, folder),
        scores=_get(own, "scores", dict, folder),
    )


def read_shape(
    folder: Path | str, metadata: Metadata, backbone: str | None = None
) -> Shape:
    """The shape of the backbone that the prefix in `folder` is for.

    PEFT writes layers, heads and width only; the rest is GPT-2's default then. Where it
    leaves these out, the shape is that of `backbone`, a name or folder, or else of the
    one that the files name. Raises InputError where nothing says it.
    """
    if metadata.backbone_config is not None:
        place, fields = Path(folder) / OWN_CONFIG, metadata.backbone_config
    else:
        place = Path(folder) / PEFT_CONFIG
        peft = read_object(place) or {}
        names = {
            "n_layer": "num_layers",
            "n_head": "num_attention_heads",
            "n_embd": "token_dim",
        }
        missing = [name for name in names.values() if peft.get(name) is None]
        if missing:
            name = backbone or metadata.backbone_name
            return _named_shape(name, peft, f"{place} does not say {missing[0]}")
        fields = {ours: peft[theirs] for ours, theirs in names.items()}
    try:
        return shape_of(fields)
    except (TypeError, InputError) as error:
        raise InputError(f"{place} does not describe a backbone: {error}") from None


def _named_shape(name: str | None, described: dict[str, Any], problem: str) -> Shape:
    """That of the backbone of this name, where a description does not say it."""
    remedy = "give the backbone: --backbone NAME_OR_FOLDER"
    if not name:
        raise InputError(f"{problem}, nor which backbone it is for; {remedy}")
    try:
        shape = load_config(name)
    except InputError as error:
        raise InputError(
            f"{problem}, and the backbone {name!r} cannot be read ({error}); {remedy}"
        ) from error
    if others := differing(described, shape):
        raise InputError(
            f"{problem}, and the backbone {name!r} is another one "
            f"({'; '.join(others)}); {remedy}"
        )
    return shape


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a file, None if there is no such file."""
    return read_json(path) if path.is_file() else None


def holds_prefix(folder: Path) -> bool:
    """Whether there is a description of a prefix, ours or PEFT's."""
    return (folder / OWN_CONFIG).is_file() or (folder / PEFT_CONFIG).is_file()


def check_replaceable(folder: Path) -> None:
    """Saving replaces the whole folder, so it must hold a prefix or nothing."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the prefix")
    held = {path.name for path in folder.glob("*")}
    others = held - FILES if holds_prefix(folder) else held
    if others:
        raise InputError(
            f"{folder} holds other things ({', '.join(sorted(others)[:5])}); "
            "give a folder of its own for the prefix"
        )


def _no_prefix(folder: Path) -> InputError:
    """What is there instead, and what to do."""
    wanted = "give the folder of a prefix, or of the run that trained it"
    if not folder.exists():
        near = folder.absolute().parent
        beside = [path.name for path in near.iterdir()] if near.is_dir() else []
        hint = closest(folder.name, beside, cutoff=NEAR_NAME)
        return InputError(f"{folder} does not exist{hint or f'; {wanted}'}")
    if not folder.is_dir():
        return InputError(f"{folder} is a file; {wanted}")
    there = sorted(path.name for path in folder.iterdir())
    if not there:
        return InputError(f"{folder} is empty; {wanted}")
    if holds_prefix(folder / "best"):
        wanted = f"it is the folder of a run: its best prefix is in {folder / 'best'}"
    if {"config.json", "model.safetensors"} <= set(there):
        wanted = "it holds a whole model, such as train.method full leaves: use it as "
        wanted += "a backbone"
    return InputError(
        f"{folder} holds no prefix (no {OWN_CONFIG} or {PEFT_CONFIG}), but "
        f"{', '.join(there[:8])}; {wanted}"
    )


def _get(record: dict[str, Any], name: str, kind: type[T], folder: Path) -> T | None:
    value = record.get(name)
    # True is a whole number, too, to Python.
    if value is None or type(value) is kind:
        return value
    raise InputError(
        f"{folder}: {name} in the description of the prefix is {json_value(value)}; "
        f"expected {json_kind(kind())} or null"
    )


def _choice(record: dict[str, Any], name: str, choices: Any, folder: Path) -> Any:
    """One of a Literal's values; the first, the default, where nothing is said."""
    value = record.get(name, get_args(choices)[0])
    if value not in get_args(choices):
        raise InputError(
            f"{folder / OWN_CONFIG}: {name} is {shown(value)}; expected one of "
            f"{', '.join(get_args(choices))}"
        )
    return value


def _layer_lengths(record: dict[str, Any], folder: Path) -> tuple[int, ...] | None:
    given, most = _get(record, "layer_lengths", list, folder), record.get("length")
    if given is None:
        return None
    whole = all(type(one) is int and one >= 0 for one in given)
    if not given or not whole or max(given) != most:
        raise InputError(
            f"{folder / OWN_CONFIG}: layer_lengths is {shown(given)}; expected a "
            f"number of positions for each layer, the largest of them {most}"
        )
    return tuple(given)
