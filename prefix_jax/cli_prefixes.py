"""The commands on stored prefixes: generate, inspect, import, export, shorten."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from prefix_jax.cli_options import parse
from prefix_jax.config import DecodeConfig, Dtype
from prefix_jax.data_config import Task
from prefix_jax.errors import InputError

if TYPE_CHECKING:  # the rest starts without loading jax
    from prefix_jax.runs.prompts import Line


@dataclasses.dataclass(frozen=True)
class Generate:
    """Write with stored prefixes; one text per prompt on standard output.

    Several prefixes serve one batch: --prefix a=DIR --prefix b=DIR --file rows.jsonl,
    with rows such as {"prompt": "...", "prefix": "a"}; for --decode.method sample each
    may have a "seed" of its own.
    """

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Prompts; without any (and without --file) they are read from standard input."""
    prefix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Folder of a prefix, or of the run that trained it; NAME=FOLDER where there are
    several. Without any: the backbone alone."""
    backbone: str | None = None
    """Backbone's name or folder. None: the one the prefix was trained on."""
    file: Path | None = None
    """Text file with one prompt a line, or .jsonl with `prompt`, `prefix` and
    `seed` (of its samples, whatever the other lines are)."""
    task: Task | None = None
    """What a prompt is: text to continue in language modelling, else a source. None: as
    the prefix learned; text to continue, if it does not say."""
    labels: tuple[str, ...] = ()
    """RAW=WORDS for each class, in classification; (): as the prefix learned."""
    content_free: tuple[str, ...] | None = None
    """Texts that say nothing, such as "N/A", to calibrate a classification by. None: as
    in the prefix's recipe (score.content_free); (): by none."""
    json: bool = False
    """Write JSON lines: prompt, prefix, text, log_prob (nats), one for each text; in
    classification prompt, prefix, label, probabilities."""
    stream: bool | None = None
    """Show the text of a single prompt as it is written. None: on a terminal."""
    decode: DecodeConfig = DecodeConfig()


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a stored prefix is, and how much attention it receives on a text.

    For example: prefix-jax inspect runs/mine --text "The town lies on the river."
    """

    folder: tyro.conf.Positional[Path]
    """Folder of a prefix, PEFT's too, or of the run that trained it (then its best)."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to read with the prefix, as it is. Without any: a short English one."""
    backbone: str | None = None
    """Backbone's name or folder. None: the one the prefix was trained on."""
    json: bool = False
    """Write one JSON object."""
    plot: Path | None = None
    """Draw the attention mass by layer and head to this file, such as mass.png."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Store a prefix that others trained as one of ours.

    Read are PEFT's prefix and prompt tuning, AdapterHub's prefix tuning, and the
    tensors of Li & Liang's code; from .bin files numbers only. With AdapterHub's, text
    counts its positions from 0, so they cannot be exported to PEFT. For example:

    prefix-jax import peft_folder --out my_prefix

    prefix-jax import pytorch_adapter.bin --backbone gpt2-medium --out my_prefix
    """

    source: tyro.conf.Positional[Path]
    """Folder or weight file."""
    out: Path
    """Folder for the prefix."""
    overwrite: bool = False
    """Replace the prefix that is there."""
    backbone: str | None = None
    """Backbone's name or folder. None: the one that adapter_config.json names."""
    dtype: Dtype = "float32"
    """Type of the backbone's weights and arithmetic."""
    task: Task | None = None
    """What its prompts are: a source, or text to continue. None: text to continue."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a prefix for PEFT, with a card (README.md) and our metadata.

    For example:

    prefix-jax export runs/e2e --out my_adapter --base-model openai-community/gpt2

    prefix-jax export runs/mine --out my_adapter --with-backbone my_backbone
    """

    folder: tyro.conf.Positional[Path]
    """Folder of a prefix, or of the run that trained it (then its best)."""
    out: Path
    """Folder for the adapter."""
    overwrite: bool = False
    """Replace the prefix that is there."""
    base_model: str | None = None
    """What PEFT calls the backbone: a name on the Hugging Face hub, or a folder, which
    must hold the same backbone. None: the name it was trained with; none, if that is
    one of this library alone (`tiny`, `smollm2-135m`) or a folder that is gone."""
    with_backbone: Path | None = None
    """Also write the backbone to this folder, as transformers reads it; the adapter
    then names the folder, if there is no --base-model."""


@dataclasses.dataclass(frozen=True)
class Shorten:
    """Store the first positions of a prefix as one of their own.

    Good where it was trained with --prefix.nested. For example:

    prefix-jax shorten runs/mine --length 4 --out four
    """

    folder: tyro.conf.Positional[Path]
    """Folder of a prefix, or of the run that trained it (then its best)."""
    length: int
    """Positions to keep."""
    out: Path
    """Folder for the shorter prefix."""
    overwrite: bool = False
    """Replace the prefix that is there."""
    backbone: str | None = None
    """Backbone's name or folder, if PEFT's files do not say its shape. None: the one
    that they name."""


def generate(arguments: list[str]) -> int:
    options = parse(Generate, arguments, "prefix-jax generate")
    if options.prompts and options.file:
        raise InputError("prompts come from the command line or from --file; not both")
    if options.stream and options.json:
        raise InputError("--stream shows text, not JSON; leave out --stream or --json")
    from prefix_jax.runs.generate import open_writer
    from prefix_jax.runs.prefixes import named_folders
    from prefix_jax.runs.prompts import Line, check_lines, read_prompts

    lines = [
        Line(prompt, place=f"prompt {number}")
        for number, prompt in enumerate(options.prompts, 1)
    ] or read_prompts(options.file)
    check_lines(lines, list(named_folders(options.prefix)))  # before anything is loaded
    writer = open_writer(
        options.prefix,
        options.backbone,
        options.task,
        options.labels,
        options.content_free,
    )
    decode = options.decode
    if writer.classifies:
        if options.stream:
            raise InputError("--stream shows text, and a label is none; leave it out")
        for line, found in zip(
            lines, writer.classify(lines, decode.batch_size), strict=True
        ):
            print(_classified(line, found, options.json))
        return 0
    can_stream = len(lines) == 1 and decode.method != "beam" and decode.sequences == 1
    wanted = sys.stdout.isatty() if options.stream is None else options.stream
    if wanted and can_stream and not options.json:
        for piece in writer.stream(lines[0], decode):
            print(piece, end="", flush=True)
        print()
        return 0
    if options.stream and not can_stream:
        raise InputError(
            "--stream is for one prompt and one text, and not for beam search, whose "
            "text is known at its end only"
        )
    for line, sequences in zip(lines, writer.write(lines, decode), strict=True):
        for one in sequences:
            if options.json:
                record = {
                    "prompt": line.prompt,
                    "prefix": line.prefix,
                    "text": one.text,
                    "log_prob": one.log_prob,
                }
                if line.seed is not None:
                    record["seed"] = line.seed
                print(json.dumps(record, ensure_ascii=False), flush=True)
            else:
                print(" ".join(one.text.splitlines()), flush=True)
    return 0


def _classified(line: "Line", found: dict[str, float], as_json: bool) -> str:
    """The label, and the probabilities of all of them."""
    label = max(found, key=found.__getitem__)
    if as_json:
        record = {
            "prompt": line.prompt,
            "prefix": line.prefix,
            "label": label,
            "probabilities": found,
        }
        return json.dumps(record, ensure_ascii=False)
    shares = "  ".join(f"{words} {share:.3f}" for words, share in found.items())
    return f"{label}  ({shares})"


def inspect(arguments: list[str]) -> int:
    options = parse(Inspect, arguments, "prefix-jax inspect")
    from prefix_jax.runs.inspect import inspect_prefix
    from prefix_jax.runs.show import plot_mass, print_inspection

    found = inspect_prefix(options.folder, options.text, options.backbone)
    if options.plot is not None:
        plot_mass(found, options.plot)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_inspection(found)
    return 0


def import_(arguments: list[str]) -> int:
    options = parse(Import, arguments, "prefix-jax import")
    from prefix_jax.runs.convert import import_

    with _writing(options.out):
        done = import_(
            options.source,
            options.out,
            backbone=options.backbone,
            dtype=options.dtype,
            task=options.task,
            overwrite=options.overwrite,
        )
    print(
        f"{done.kind}: {done.length} positions, {done.numbers:,} numbers\n"
        f"backbone {done.backbone} (fingerprint {done.fingerprint})\n"
        f"stored in {done.folder}"
    )
    for note in done.notes:
        print(f"note: {note}")
    return 0


def export(arguments: list[str]) -> int:
    options = parse(Export, arguments, "prefix-jax export")
    from prefix_jax.runs.convert import export

    with _writing(options.out):
        done = export(
            options.folder,
            options.out,
            base_model=options.base_model,
            with_backbone=options.with_backbone,
            overwrite=options.overwrite,
        )
    if done.backbone_folder is not None:
        print(f"backbone {done.backbone} in {done.backbone_folder}")
    print(f"{done.length} positions for PEFT in {done.folder}, with a card (README.md)")
    if done.base_model is not None:
        unsure = "" if done.checked else " (by its name alone: not checked)"
        print(f"base model {done.base_model}{unsure}")
    else:
        print(
            f"base model: none, as PEFT cannot find {done.backbone or 'it'} by name; "
            "give PEFT the model when you load the adapter, or write it too with "
            "--with-backbone FOLDER, or name it with --base-model"
        )
    return 0


def shorten(arguments: list[str]) -> int:
    options = parse(Shorten, arguments, "prefix-jax shorten")
    from prefix_jax.runs.convert import shorten

    with _writing(options.out):
        done = shorten(
            options.folder,
            options.out,
            options.length,
            backbone=options.backbone,
            overwrite=options.overwrite,
        )
    print(f"the first {done.length} positions are in {options.out}")
    trained = ((done.recipe or {}).get("prefix") or {}).get("nested") or ()
    if options.length not in trained:
        print(
            "it was not trained for that length alone (--prefix.nested), so expect "
            "less of it than of the whole"
        )
    return 0


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """InputError where the disk or its rights do not allow it."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror or error}; give another --out"
        ) from error
