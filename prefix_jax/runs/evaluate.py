"""Score what a run left behind, stored prefixes, or the backbone, on a split."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from prefix_jax.config import Config, DecodeConfig
from prefix_jax.data.tasks import Example, Split
from prefix_jax.data_config import label_words
from prefix_jax.distributed import check_alike, is_first
from prefix_jax.errors import InputError, counted
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.runs.evaluation import Evaluation, write_evaluation
from prefix_jax.runs.prefixes import load_bank
from prefix_jax.runs.prepare import Rows, Setup, prepare
from prefix_jax.runs.progress import counting, screen
from prefix_jax.runs.record import check_folder
from prefix_jax.runs.result import check_result, load_result
from prefix_jax.runs.validate import Validation, Validator, Written, write_each
from prefix_jax.score_config import ScoreConfig
from prefix_jax.scoring.classes import ClassReport
from prefix_jax.scoring.metrics import class_scores, metrics_of, text_scores
from prefix_jax.storage.metadata import read_metadata
from prefix_jax.storage.remote import at_hand

Which = Literal["best", "last", "none"]

UNMEASURED = Validation(step=0, loss=math.nan, tokens=0)
"""Stands for the loss where `score.loss` is off."""


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
    """Loss and the task's scores of `workdir/best` or `last`, or of no tuning (`none`).

    `workdir` may be in a bucket, as of `train`.
    `limit`: score the first so many sources only, each with all of its references; in
    language modelling so many packed rows. Writes the files of
    `evaluation.write_evaluation` in `workdir`. Raises InputError if there is nothing to
    evaluate, or `config.score.metrics` cannot be had.
    """
    check_limit(limit)
    metrics_of(config.data.task, config.score.metrics)
    if workdir is None:
        return _evaluate(config, None, split, which, limit, console)
    with at_hand(workdir, [which]) as place:
        return _evaluate(config, place.folder, split, which, limit, console)


def _evaluate(
    config: Config,
    workdir: Path | None,
    split: Split,
    which: Which,
    limit: int | None,
    console: Console | None,
) -> Evaluation:
    if workdir is not None:
        check_folder(workdir)
        if which != "none":
            check_result(workdir / which)
    console = console or screen()
    setup = prepare(config)
    if which == "none" or workdir is None:
        backbone, prefix = setup.backbone, None
    else:
        backbone, prefix = load_result(workdir / which, setup)
    result, written = score(setup, backbone, prefix, split, which, limit, console)
    if workdir is not None and is_first():
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
    metrics_of(config.data.task, config.score.metrics)
    for name in prefixes:
        if name in get_args(Which) or Path(name).name != name:
            raise InputError(
                f'a prefix called "{name}" cannot name its files; give it a name '
                f"without slashes, other than {', '.join(get_args(Which))}: "
                "--prefix NAME=FOLDER"
            )
        read_metadata(prefixes[name])
    check_folder(workdir)
    console = console or screen()
    setup = prepare(config)
    bank = load_bank(prefixes, setup.backbone, setup.fingerprint)
    names = list(prefixes)
    held_out = setup.rows(split, names, limit)
    if config.data.prefix_column is None:
        held_out = _with_each(held_out, names)
    check_alike({f"{split} rows": held_out.fingerprint})
    if idle := sorted(set(names) - {str(row.prefix) for row in held_out.rows}):
        raise InputError(
            f"no row of {split} names the prefix {', '.join(idle)} in its column "
            f'"{config.data.prefix_column}" (data.prefix_column); leave it out'
        )
    validations = [UNMEASURED] * len(names)
    if config.score.loss:
        validator = Validator(setup, held_out, prefixes=names)
        with counting(f"loss on {split}", len(validator), console) as progress:
            validations = validator.each(setup.backbone, bank, progress)
    groups = [
        [example for example in held_out.examples if example.prefix == name]
        for name in names
    ]
    scored = _write(
        setup, setup.backbone, bank, split, names, validations, groups, limit, console
    )
    for result, written in scored if is_first() else ():
        write_evaluation(workdir, result, written)
    return [result for result, _ in scored]


def score(
    setup: Setup,
    backbone: Backbone,
    prefix: KV | None,
    split: Split,
    which: Which,
    limit: int | None,
    console: Console,
) -> tuple[Evaluation, Written]:
    """Measure a backbone with or without a prefix on a split, or its first sources."""
    held_out = setup.rows(split, limit=limit)
    check_alike({f"{split} rows": held_out.fingerprint})
    validation = UNMEASURED
    if setup.config.score.loss:
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
        [held_out.examples],
        limit,
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
    backbone: Backbone,
    bank: KV | None,
    split: Split,
    names: Sequence[str],
    validations: Sequence[Validation],
    groups: Sequence[Sequence[Example]],
    limit: int | None,
    console: Console,
) -> list[tuple[Evaluation, Written]]:
    """Write the texts of each prefix's examples, and put its scores together."""
    total = sum(len(group) for group in groups)
    decode = setup.config.decode
    classes = setup.config.data.task == "classification"
    doing = "classifying" if classes else "writing"
    with counting(f"{doing} {split}", total, console) as progress:
        written = write_each(setup, backbone, bank, groups, decode, progress)
    room = (
        "a label (data.max_length)"
        if classes
        else f"{decode.max_new_tokens} new tokens (decode.max_new_tokens)"
    )
    for what, number in (
        ("cut short", sum(one.cut_sources for one in written)),
        ("left out", sum(one.dropped_sources for one in written)),
    ):
        if number:
            console.print(
                f"{what}, to leave room for {room}: {number:,} of "
                f"{counted(total, 'source')}",
                highlight=False,
            )
    settings = _settings(setup.config, limit)
    return [
        (_evaluation(setup, split, name, validation, one, settings), one)
        for name, validation, one in zip(names, validations, written, strict=True)
    ]


def _settings(config: Config, limit: int | None) -> dict[str, object]:
    """What `Evaluation.settings` holds."""
    found: dict[str, object] = {} if limit is None else {"limit": limit}
    if not config.score.loss:
        found["score.loss"] = False
    section: ScoreConfig | DecodeConfig = config.decode
    name, others = "decode", {"batch_size"}
    if config.data.task == "classification":  # which writes nothing
        section, name, others = config.score, "score", {"metrics", "loss"}
    elif config.data.task == "language_modelling":
        return found
    return found | {
        f"{name}.{field.name}": value
        for field in dataclasses.fields(section)
        if (value := getattr(section, field.name)) != field.default
        and field.name not in others
    }


def _evaluation(
    setup: Setup,
    split: Split,
    which: str,
    validation: Validation,
    written: Written,
    settings: Mapping[str, object],
) -> Evaluation:
    scores, classes = _scores(setup, written)
    subsets = {}
    for name in dict.fromkeys(example.subset for example in written.examples):
        if name is not None:
            part = written.only(name)
            own, _ = _scores(setup, part)
            subsets[name] = {"sources": len(part.examples), **own}
    return Evaluation(
        split=split,
        which=which,
        loss=validation.loss,
        perplexity=validation.perplexity,
        tokens=validation.tokens,
        sources=len(written.examples),
        cut_sources=written.cut_sources,
        scores=scores,
        subsets=subsets,
        classes=classes,
        settings=settings,
    )


def _scores(
    setup: Setup, written: Written
) -> tuple[dict[str, float], ClassReport | None]:
    """The task's scores; in classification also what they are made of."""
    config = setup.config
    metrics = metrics_of(config.data.task, config.score.metrics)
    if not written.examples:
        return {}, None
    if config.data.task == "classification":
        report = ClassReport.of(
            written.texts,
            [example.target for example in written.examples],
            [*label_words(config.data.labels).values()],
        )
        return class_scores(metrics, report), report
    references = [example.references for example in written.examples]
    return text_scores(metrics, written.texts, references), None
