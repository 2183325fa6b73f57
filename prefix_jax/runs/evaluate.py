"""Score what a run left behind, stored prefixes, or the backbone, on a split."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from prefix_jax.config import Config
from prefix_jax.data.tasks import Example, Split
from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV
from prefix_jax.runs.prefixes import load_bank
from prefix_jax.runs.prepare import Rows, Setup, prepare
from prefix_jax.runs.progress import counting
from prefix_jax.runs.record import check_folder
from prefix_jax.runs.result import load_result
from prefix_jax.runs.validate import Validation, Validator, Written, write_each
from prefix_jax.storage.files import write_json, write_text

Which = Literal["best", "last", "none"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores on one split."""

    split: Split
    which: str
    """`best` or `last` of a run, `none`, or the name of a prefix."""
    loss: float
    """Nats per target token."""
    perplexity: float
    tokens: int
    sources: int
    cut_sources: int
    """Sources whose end was cut for decoding, to fit the backbone's positions."""
    bleu: float | None
    """Corpus BLEU over all references; None where the task has no references."""


def check_limit(limit: int | None) -> None:
    """InputError for a number of sources that is none."""
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected a whole number >= 1, or None")


def evaluate(
    config: Config,
    workdir: Path | None,
    *,
    split: Split = "test",
    which: Which = "best",
    limit: int | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Loss, perplexity and BLEU of `workdir/best` or `last`, or of no tuning (`none`).

    `limit`: decode only the first so many sources. Writes `evaluation_SPLIT_WHICH.json`
    and the texts, beside their references, to `outputs_SPLIT_WHICH.jsonl` in `workdir`.
    Raises InputError if there is nothing to evaluate.
    """
    check_limit(limit)
    if workdir is not None:
        check_folder(workdir)
    console = console or Console()
    setup = prepare(config)
    if which == "none" or workdir is None:
        backbone, prefix = setup.backbone, None
    else:
        backbone, prefix = load_result(workdir / which, setup)
    result, written = score(setup, backbone, prefix, split, which, limit, console)
    if workdir is not None:
        write_evaluation(workdir, result, written)
    return result


def evaluate_prefixes(
    config: Config,
    prefixes: Mapping[str, Path],
    workdir: Path,
    *,
    split: Split = "test",
    limit: int | None = None,
    console: Console | None = None,
) -> list[Evaluation]:
    """The scores of stored prefixes, by name, each as it would have them alone.

    Every row of the split is read with the prefix that its `data.prefix_column` names;
    without such a column with each of them. Batches mix the prefixes. Files are written
    for each prefix as `evaluate` does, with its name for `best`.
    Raises InputError where a row names another, or no row names one of them.
    """
    check_limit(limit)
    for name in prefixes:
        if name in get_args(Which) or Path(name).name != name:
            raise InputError(
                f'a prefix called "{name}" cannot name its files; give it a name '
                f"without slashes, other than {', '.join(get_args(Which))}: "
                "--prefix NAME=FOLDER"
            )
    check_folder(workdir)
    console = console or Console()
    setup = prepare(config)
    bank = load_bank(prefixes, setup.backbone, setup.fingerprint)
    names = list(prefixes)
    held_out = setup.rows(split, names)
    if config.data.prefix_column is None:
        held_out = _with_each(held_out, names)
    if idle := sorted(set(names) - {str(row.prefix) for row in held_out.rows}):
        raise InputError(
            f"no row of {split} names the prefix {', '.join(idle)} in its column "
            f'"{config.data.prefix_column}" (data.prefix_column); leave it out'
        )
    validator = Validator(setup, held_out, prefixes=names)
    with counting(f"loss on {split}", len(validator), console) as progress:
        validations = validator.each(setup.backbone, bank, progress)
    groups = [
        [example for example in held_out.examples if example.prefix == name][:limit]
        for name in names
    ]
    scored = _write(
        setup, setup.backbone, bank, split, names, validations, groups, console
    )
    for result, written in scored:
        write_evaluation(workdir, result, written)
    return [result for result, _ in scored]


def score(
    setup: Setup,
    backbone: GPT2,
    prefix: KV | None,
    split: Split,
    which: Which,
    limit: int | None,
    console: Console,
) -> tuple[Evaluation, Written]:
    """Measure a backbone with or without a prefix on a split."""
    held_out = setup.rows(split)
    validator = Validator(setup, held_out)
    with counting(f"loss on {split}", len(validator), console) as progress:
        validation = validator(backbone, prefix, progress=progress)
    [scored] = _write(
        setup,
        backbone,
        prefix,
        split,
        [which],
        [validation],
        [held_out.examples[:limit]],
        console,
    )
    return scored


def _with_each(held_out: Rows, names: Sequence[str]) -> Rows:
    """Every row and example once for each prefix."""

    def named(items):
        return [dataclasses.replace(x, prefix=name) for x in items for name in names]

    return dataclasses.replace(
        held_out, rows=named(held_out.rows), examples=named(held_out.examples)
    )


def _write(
    setup: Setup,
    backbone: GPT2,
    bank: KV | None,
    split: Split,
    names: Sequence[str],
    validations: Sequence[Validation],
    groups: Sequence[Sequence[Example]],
    console: Console,
) -> list[tuple[Evaluation, Written]]:
    """Write the texts of each prefix's examples, and put its scores together."""
    total = sum(len(group) for group in groups)
    decode = setup.config.decode
    with counting(f"writing {split}", total, console) as progress:
        written = write_each(setup, backbone, bank, groups, decode, progress)
    if cut := sum(one.cut_sources for one in written):
        console.print(
            f"{cut:,} of {total:,} sources were cut short to leave room for "
            f"{decode.max_new_tokens} new tokens (decode.max_new_tokens)",
            highlight=False,
        )
    return [
        (
            Evaluation(
                split=split,
                which=name,
                loss=validation.loss,
                perplexity=validation.perplexity,
                tokens=validation.tokens,
                sources=len(one.examples),
                cut_sources=one.cut_sources,
                bleu=one.bleu if one.examples else None,
            ),
            one,
        )
        for name, validation, one in zip(names, validations, written, strict=True)
    ]


def write_evaluation(workdir: Path, result: Evaluation, written: Written) -> None:
    """The scores as JSON and the texts as JSON lines."""
    workdir.mkdir(parents=True, exist_ok=True)
    name = f"{result.split}_{result.which}"
    write_json(workdir / f"evaluation_{name}.json", dataclasses.asdict(result))
    lines = [
        {"source": example.source, "text": text, "references": example.references}
        for example, text in zip(written.examples, written.texts, strict=True)
    ]
    write_text(
        workdir / f"outputs_{name}.jsonl",
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    )
