"""Score what a run left behind, or the backbone alone, on a held-out split."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from prefix_jax.config import Config
from prefix_jax.data.tasks import Split
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV
from prefix_jax.runs.prepare import Setup, prepare
from prefix_jax.runs.result import load_result
from prefix_jax.runs.validate import Validator, Written, write_texts

Which = Literal["best", "last", "none"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores on one split."""

    split: Split
    which: Which
    loss: float
    """Nats per target token."""
    perplexity: float
    tokens: int
    sources: int
    bleu: float | None
    """Corpus BLEU over all references; None where the task has no references."""


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
    validation = Validator(setup, held_out)(backbone, prefix)
    examples = held_out.examples[:limit]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"writing {split}", total=len(examples))
        written = write_texts(
            setup,
            backbone,
            prefix,
            examples,
            setup.config.decode,
            lambda done: progress.advance(task, done),
        )
    return Evaluation(
        split=split,
        which=which,
        loss=validation.loss,
        perplexity=validation.perplexity,
        tokens=validation.tokens,
        sources=len(examples),
        bleu=written.bleu if examples else None,
    ), written


def write_evaluation(workdir: Path, result: Evaluation, written: Written) -> None:
    """The scores as JSON and the texts as JSON lines."""
    workdir.mkdir(parents=True, exist_ok=True)
    name = f"{result.split}_{result.which}"
    path = workdir / f"evaluation_{name}.json"
    path.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    with (workdir / f"outputs_{name}.jsonl").open("w", encoding="utf-8") as file:
        for example, text in zip(written.examples, written.texts, strict=True):
            line = {
                "source": example.source,
                "text": text,
                "references": list(example.references),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
