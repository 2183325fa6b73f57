"""The command line's `import` and `export`, for other libraries, and `shorten`."""

import dataclasses
from pathlib import Path

from prefix_jax.config import Dtype
from prefix_jax.data_config import Task
from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.loading import OWN_NAMES, load_backbone, load_tokenizer
from prefix_jax.model.tensor_files import open_tensors, read_json
from prefix_jax.model.weights import fingerprint, save_backbone
from prefix_jax.runs.prefixes import KEPT, prefix_folder
from prefix_jax.storage.artifact import save_prefix
from prefix_jax.storage.card import is_hub_name
from prefix_jax.storage.exporting import check_exportable, export_prefix
from prefix_jax.storage.files import replaced
from prefix_jax.storage.importing import STEMS, find_prefix
from prefix_jax.storage.metadata import (
    OWN_CONFIG,
    PEFT_CONFIG,
    Metadata,
    check_replaceable,
    holds_prefix,
    read_metadata,
)
from prefix_jax.storage.shortening import shorten_prefix


@dataclasses.dataclass(frozen=True)
class Imported:
    """What was found, and where it went."""

    kind: str
    length: int
    numbers: int
    backbone: str
    fingerprint: str
    folder: Path
    notes: tuple[str, ...]
    """What was assumed, and what cannot be done with it."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What PEFT will find, and where."""

    length: int
    folder: Path
    base_model: str | None
    """As in adapter_config.json; None: PEFT must be given the model."""
    checked: bool
    """False of a name on the hub that was given: it is taken as it is."""
    backbone: str | None
    """As the prefix calls it."""
    backbone_folder: Path | None
    """Where the backbone was written, if it was asked for."""


def import_(
    source: Path,
    out: Path,
    *,
    backbone: str | None = None,
    dtype: Dtype = "float32",
    task: Task | None = None,
    overwrite: bool = False,
) -> Imported:
    """Store the prefix that others trained as ours, in `out`.

    `backbone`: name or folder; None: as adapter_config.json says. Raises InputError as
    `import_prefix` and `save_prefix`, and where no backbone is named.
    """
    if (prefix_folder(source) / OWN_CONFIG).is_file():
        raise InputError(
            f"{source} is a prefix of this library, and needs no import: use it as it "
            f"is, for example prefix-jax generate --prefix {source}"
        )
    if not source.exists():
        raise InputError(
            f"{source} does not exist; give a folder or a weight file of PEFT, "
            "AdapterHub or Li & Liang's code"
        )
    _check_out(out, overwrite)
    if (source / PEFT_CONFIG).is_file():
        read_metadata(source)  # another kind of adapter needs no backbone to be refused
    name = backbone or _named_in(source)
    try:
        model = load_backbone(name, dtype=dtype)
    except InputError as error:
        if backbone:
            raise
        raise InputError(
            f"{source / PEFT_CONFIG} names the backbone {name!r}: {error}; say with "
            "--backbone which name or folder is meant"
        ) from error
    found = find_prefix(source, model)
    digest = fingerprint(model)
    notes = (
        *found.notes,
        "how a prompt begins and ends is not stored with it: `generate` takes yours as "
        "they are, so give them as they were in training",
    )
    save_prefix(
        out,
        found.prefix,
        backbone=model,
        recipe={"imported": {"kind": found.kind, "source": source.name}},
        task=task,
        base_model_name=name,
        backbone_fingerprint=digest,
    )
    return Imported(found.kind, found.length, found.numbers, name, digest, out, notes)


def export(
    folder: Path,
    out: Path,
    *,
    base_model: str | None = None,
    with_backbone: Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a prefix, or a run's best, for PEFT.

    adapter_config.json names `base_model`; else the folder `with_backbone`, in which
    the backbone is written as transformers reads it; else the backbone by the name it
    was trained with, unless that is one of this library's own, such as `tiny`, which
    nobody else knows, or a folder that is no longer there.
    Raises InputError for what PEFT cannot represent, for another backbone, and for
    folders with other things.
    """
    if base_model == "":
        raise InputError(
            "--base-model is empty; give the name by which PEFT finds the model"
        )
    folder = prefix_folder(folder)
    metadata = check_exportable(folder)
    trained_with = metadata.backbone_name
    _check_out(out, overwrite)
    if with_backbone is not None:
        if trained_with is None:
            raise InputError(
                f"{folder} does not say which backbone it was trained with, so it "
                "cannot be written; leave out --with-backbone"
            )
        inside = (with_backbone.absolute(), *with_backbone.absolute().parents)
        if out.absolute() in inside:
            raise InputError(
                f"--with-backbone {with_backbone} is in --out {out}; give a folder of "
                "its own"
            )
        _write_backbone(with_backbone, trained_with, metadata.backbone_fingerprint)
    name = base_model
    if name is None and with_backbone is not None:
        name = str(with_backbone)
    elif name is None and trained_with is not None and _is_findable(trained_with):
        name = trained_with
    export_prefix(folder, out, base_model=name)
    assert metadata.length is not None
    return Exported(
        length=metadata.length,
        folder=out,
        base_model=read_json(out / PEFT_CONFIG)["base_model_name_or_path"],
        checked=base_model is None or Path(base_model).expanduser().is_dir(),
        backbone=trained_with,
        backbone_folder=with_backbone,
    )


def shorten(
    folder: Path,
    out: Path,
    length: int,
    *,
    backbone: str | None = None,
    overwrite: bool = False,
) -> Metadata:
    """Store the first `length` positions of a prefix, or of a run's best, in `out`.

    `backbone` and InputError as in `shorten_prefix`.
    """
    folder = prefix_folder(folder)
    if out.absolute() == folder.absolute():
        raise InputError(
            f"{out} is the prefix itself, which would be lost; give another folder"
        )
    _check_out(out, overwrite)
    return shorten_prefix(folder, out, length, backbone=backbone)


def _check_out(out: Path, overwrite: bool) -> None:
    """InputError where `out` holds what the user did not say may go."""
    out = out.absolute()
    if out.name in KEPT and (out.parent / "config.json").is_file():
        raise InputError(
            f"{out} belongs to the run in {out.parent}; give a folder of its own"
        )
    check_replaceable(out)
    if holds_prefix(out) and not overwrite:
        raise InputError(
            f"{out} holds a prefix already; give another --out, or --overwrite it"
        )


def _is_findable(name: str) -> bool:
    """Whether PEFT would find a backbone by the name it was trained with."""
    there = is_hub_name(name) or Path(name).expanduser().is_dir()
    return there and name not in OWN_NAMES


def _named_in(source: Path) -> str:
    """The backbone that adapter_config.json names."""
    path = source / PEFT_CONFIG
    name = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    if not isinstance(name, str) or not name:
        if not path.is_file() and (source / "config.json").is_file():
            raise InputError(
                f"{source} holds a whole model, or a run, and no adapter (no "
                f"{PEFT_CONFIG}); give the adapter's folder"
            )
        open_tensors(source, STEMS)  # what holds none needs no backbone to be refused
        raise InputError(
            f"{source} does not say which backbone it was trained with (no "
            f"base_model_name_or_path in {PEFT_CONFIG}); give it, for example "
            "--backbone gpt2-medium"
        )
    return name


def _write_backbone(folder: Path, name: str, expected: str | None) -> None:
    """The backbone as a Hugging Face folder; one that is there already may stay."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the backbone")
    model = load_backbone(name)
    _check_same(model, f"the backbone {name!r}", expected)
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{folder} holds other things; give a new folder for the backbone"
            )
        _check_same(load_backbone(folder), f"the backbone in {folder}", expected)
        return
    with replaced(folder.absolute()) as fresh:
        save_backbone(fresh, model)
        load_tokenizer(name).save_pretrained(fresh)


def _check_same(model: Backbone, what: str, expected: str | None) -> None:
    found = fingerprint(model)
    if expected is not None and found != expected:
        raise InputError(
            f"{what} is not the one that the prefix was trained with (fingerprint "
            f"{expected} there, {found} here)"
        )
