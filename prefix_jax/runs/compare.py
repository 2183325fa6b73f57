"""Several ways of tuning one backbone on one task, side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from prefix_jax.config import Config
from prefix_jax.data.tasks import Split
from prefix_jax.errors import InputError, counted
from prefix_jax.runs.evaluate import check_limit, score
from prefix_jax.runs.evaluation import Evaluation, write_evaluation
from prefix_jax.runs.prepare import prepare
from prefix_jax.runs.record import check_folder, check_run
from prefix_jax.runs.result import stored_bytes
from prefix_jax.runs.samples import spread
from prefix_jax.runs.show import show_size
from prefix_jax.runs.trial import run_trial
from prefix_jax.runs.validate import Written
from prefix_jax.scoring.metrics import metrics_of, show
from prefix_jax.storage.files import write_json
from prefix_jax.storage.log import plot_curves

Compared = Literal["none", "prefix", "embedding", "top2", "full"]
LABELS: Mapping[str, str] = {
    "none": "backbone alone",
    "prefix": "prefix-tuning",
    "embedding": "embedding only",
    "top2": "top-2 layers",
    "full": "full fine-tuning",
}
SAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    method: Compared
    trained: int
    """Numbers trained."""
    share: float
    """Of the backbone's parameters."""
    stored_bytes: int
    """Size on disk of what the task adds to the backbone."""
    learning_rate: float | None
    step: int
    """Step of the checkpoint that is scored: the best on the validation split."""
    validation_loss: float | None
    seconds: float
    """Wall time of training with its validations, over all calls that it took."""
    scores: Evaluation


def compare(
    config: Config,
    workdir: Path,
    *,
    methods: Sequence[Compared] = ("none", "prefix", "full"),
    learning_rates: Mapping[str, float | None] | None = None,
    split: Split = "test",
    limit: int | None = None,
    console: Console | None = None,
) -> list[Row] | None:
    """Train each method for the same number of steps and score it on `split`.

    `embedding` is prompt tuning of the recipe's length. Each method's run is in
    `workdir/METHOD` and resumes like any run. The prefix learns at
    `config.optim.learning_rate`, which says nothing of the others: they learn at
    `learning_rates[METHOD]`, or their default. Writes `comparison.json` and
    `curves.png`. None if it was interrupted.
    """
    console = console or Console()
    check_limit(limit)
    metrics_of(config.data.task, config.score.metrics)
    if not methods:
        raise InputError(f"there is no method to compare; name some of {list(LABELS)}")
    configs = {method: _config(config, method, learning_rates) for method in methods}
    check_folder(workdir)
    for method in methods:
        check_folder(workdir / method)
        if method != "none":
            check_run(configs[method], workdir / method)
    loaded = prepare(config)
    rows: list[Row] = []
    texts: dict[Compared, Written] = {}
    for method in methods:
        console.rule(LABELS[method])
        tuned = method != "none"
        setup = loaded.of(configs[method])
        outcome = None
        if tuned:
            trial = run_trial(setup, workdir / method, split, limit, console)
            if trial is None:
                return None
            outcome, scores, texts[method] = trial.outcome, trial.scores, trial.written
        else:
            scores, texts[method] = score(
                setup, setup.backbone, None, split, "none", limit, console
            )
            write_evaluation(workdir / method, scores, texts[method])
        found = [f"loss {scores.loss:.4f}"] if scores.has_loss else []
        found += _main_score(scores)
        console.print(f"{split} {', '.join(found)}", highlight=False)
        rows.append(
            Row(
                method=method,
                trained=outcome.trained if outcome else 0,
                share=outcome.share if outcome else 0.0,
                stored_bytes=stored_bytes(workdir / method / "best") if tuned else 0,
                learning_rate=setup.config.optim.learning_rate if tuned else None,
                step=outcome.best.step if outcome else 0,
                validation_loss=outcome.best.loss if outcome else None,
                seconds=round(outcome.seconds, 1) if outcome else 0.0,
                scores=scores,
            )
        )
    write_json(workdir / "comparison.json", [dataclasses.asdict(row) for row in rows])
    console.print(_table(rows, split))
    _show_samples(texts, console)
    curves = {LABELS[row.method]: workdir / row.method for row in rows if row.trained}
    if curves and (picture := plot_curves(curves, workdir / "curves.png")):
        console.print(f"curves: {picture}", highlight=False)
    return rows


def _config(
    config: Config, method: Compared, learning_rates: Mapping[str, float | None] | None
) -> Config:
    """The recipe of one method's run."""
    rate = (learning_rates or {}).get(method)
    if method == "prefix":
        rate = config.optim.learning_rate
    prefix = config.prefix
    if method == "embedding":
        prefix = dataclasses.replace(prefix, kind="embedding")
    trained = method if method in ("top2", "full") else "prefix"
    return dataclasses.replace(
        config,
        prefix=prefix,
        optim=dataclasses.replace(config.optim, learning_rate=rate),
        train=dataclasses.replace(config.train, method=trained),
    )


def _table(rows: Sequence[Row], split: Split) -> Table:
    sources = rows[0].scores.sources
    table = Table(title=f"{split} split, {counted(sources, 'source')}")
    table.add_column("method", no_wrap=True)
    main = [one.rpartition(" ")[0] for one in _main_score(rows[0].scores)]
    loss = ["loss"] * any(row.scores.has_loss for row in rows)
    for name in ("trained", "share", "stored", *loss, *main, "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            LABELS[row.method],
            f"{row.trained:,}",
            f"{row.share:.2%}",
            show_size(row.stored_bytes),
            *[f"{row.scores.loss:.3f}"] * len(loss),
            *(one.rpartition(" ")[2] for one in _main_score(row.scores)),
            f"{row.seconds:.0f}" if row.trained else "",
        )
    table.caption = "share: of the backbone's parameters; stored: what the task adds "
    table.caption += "on disk"
    if loss:
        table.caption += "; loss: nats per target token over all references"
    return table


def _main_score(scores: Evaluation) -> list[str]:
    """Name and value of the first score, where there is one."""
    return [show(*one) for one in list(scores.scores.items())[:1]]


def _show_samples(texts: Mapping[Compared, Written], console: Console) -> None:
    # A longer prefix leaves less room: methods may have left out different sources.
    found: dict[Compared, dict[str, str]] = {
        method: {
            one.source: text for one, text in zip(w.examples, w.texts, strict=True)
        }
        for method, w in texts.items()
    }
    examples = [
        example
        for example in next(iter(texts.values())).examples
        if all(example.source in own for own in found.values())
    ]
    for example in spread(examples, SAMPLES):
        lines = [("source", example.source)]
        lines += [
            (LABELS[method], own[example.source]) for method, own in found.items()
        ]
        lines += [("reference", text) for text in example.references[:SAMPLES]]
        console.print()
        for label, text in lines:
            console.print(
                f"{label:<18}{' '.join(text.split())}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
