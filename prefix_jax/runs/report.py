"""One HTML page of runs: `prefix-jax report`.

The page needs no network and no script: style and pictures are in it, and its content
security policy forbids the rest. Whatever runs hold is escaped by jinja2 or
ElementTree.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from prefix_jax.config import Config
from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import Row, encode_examples, encode_texts
from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.runs import page
from prefix_jax.runs.attention import find_backbone, read_with
from prefix_jax.runs.charts import Curve, loss_chart, mark
from prefix_jax.runs.folders import Run, find_runs, read_written
from prefix_jax.runs.samples import spread
from prefix_jax.runs.score_tables import detail_tables, score_table
from prefix_jax.storage.files import write_text
from prefix_jax.storage.metadata import holds_prefix, read_metadata
from prefix_jax.storage.versions import library_versions

GENERATOR = '<meta name="generator" content="prefix-jax report">'
"""How a page of ours is known."""

SHOWN_REFERENCES = 3
"""Of a source; the others are folded away."""

MUCH = 0.66
"""Above this share a cell's number is written in the other ink (report.css)."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """The attention that texts pay to a run's prefix."""

    label: str
    mass: Sequence[Sequence[float]]
    """By layer and head, shares of 1; empty if not measured."""
    note: str
    """What was read, or why nothing was."""


@dataclasses.dataclass(frozen=True)
class Reported:
    """What was written."""

    path: Path
    size: int
    """Bytes."""
    runs: int


def report(
    given: Sequence[str],
    out: Path,
    *,
    overwrite: bool = False,
    samples: int = 6,
    attention: bool = True,
    command: str = "",
) -> Reported:
    """Write the page of the runs in the folders `given` (as `find_runs`) to `out`.

    `samples`: sources to show. `attention`: load backbones to measure the attention
    that the prefixes get. `command`: to be shown.
    Raises InputError for folders without a run, damaged files, and an `out` that holds
    something else than such a page, unless `overwrite`.
    """
    if samples < 1:
        raise InputError(f"--samples is {samples}; expected a whole number >= 1")
    _check_out(out, overwrite)
    runs = find_runs(given)
    load = functools.cache(load_backbone)
    trained = [run for run in runs if not run.alone]
    measured = (
        [_attention(run, samples, load) for run in trained if run.method == "prefix"]
        if attention
        else []
    )
    html = render(runs, measured, samples=samples, looked=attention, command=command)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return Reported(out, out.stat().st_size, len(runs))


def render(
    runs: Sequence[Run],
    measured: Sequence[Attention],
    *,
    samples: int,
    looked: bool,
    command: str,
) -> str:
    """The page as text; the same for the same runs."""
    drawn = [
        Curve(run.label, run.losses("train"), run.losses("validation"))
        for run in runs
        if run.log
    ]
    scores, groups = score_table(runs)
    differing, everything = page.settings(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        generator=Markup(GENERATOR),
        runs=runs,
        missing=list(page.missing(runs)),
        scores=scores,
        groups=groups,
        details=list(detail_tables(runs)),
        charts=[
            Markup(loss_chart(drawn, width, height, name))
            for width, height, name in ((1040, 430, "wide"), (400, 340, "narrow"))
        ],
        legend=[(Markup(mark(i)), curve.label) for i, curve in enumerate(drawn)],
        validations=page.validations(runs),
        samples=page.samples(runs, samples),
        shown_references=SHOWN_REFERENCES,
        measured=measured,
        much=MUCH,
        looked=looked,
        differing=differing,
        everything=everything,
        versions=page.versions(runs),
        command=command,
        version=library_versions().get("prefix-jax", ""),
    )
    # JSON can hold halves of surrogate pairs, which UTF-8 cannot.
    return html.encode("utf-8", "replace").decode("utf-8")


def _check_out(out: Path, overwrite: bool) -> None:
    """InputError where `out` holds what the user did not say may go."""
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out {out} is no page's name; give one that ends in .html")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give a file, such as report.html")
    if out.exists() and not overwrite:
        with out.open("rb") as file:
            ours = GENERATOR.encode() in file.read(1000)
        if not ours:
            raise InputError(
                f"{out} is there and no report of ours; give another --out, or "
                "--overwrite it"
            )


def _attention(run: Run, number: int, load: Callable[..., Backbone]) -> Attention:
    best = run.folder / "best"
    if not holds_prefix(best):
        note = f"not measured: {best} holds no prefix (yet)"
        return Attention(run.label, (), note)
    metadata = read_metadata(best)
    model, prefix, found = find_backbone(best, metadata, load=load)
    if model is None or prefix is None:
        return Attention(run.label, (), f"not measured: the backbone {found}")
    lines = _sources(run, number)
    if not lines or not run.config:
        note = "not measured: there is no text to read (prefix-jax evaluate writes it)"
        return Attention(run.label, (), note)
    room = model.config.n_positions - prefix.position_offset
    try:
        rows = _rows(run, lines, room, str(metadata.backbone_name))
    except InputError as error:
        return Attention(run.label, (), f"not measured: {error}")
    mass = read_with(model, prefix, rows).mass
    if mass is None:
        note = "not measured: a gated prefix takes no share of the text's attention"
        return Attention(run.label, (), note)
    tokens = sum(len(row.tokens) for row in rows)
    note = f"{len(rows)} sources with a reference each, {tokens:,} tokens"
    if prefix.placement == "infix":
        note += ", of which those after the infix count"
    return Attention(run.label, mass.tolist(), note)


def _sources(run: Run, number: int) -> Sequence[dict]:
    """Some held-out sources and references, of an evaluation or of training."""
    for evaluation in run.evaluations:
        if written := run.written(evaluation):
            return spread(list(written.values()), number)
    return spread(list(read_written(run.folder / "samples.jsonl").values()), number)


def _rows(run: Run, lines: Sequence[dict], room: int, name: str) -> Sequence[Row]:
    """As in training, so that they fit."""
    tokenizer, data = load_tokenizer(name), Config.from_dict(run.config).data
    if data.task == "language_modelling":
        encoded = encode_texts([line["source"] for line in lines], tokenizer)
        return [Row(ids[:room], ids[:room] >= 0) for ids in encoded if len(ids)]
    examples = [
        Example(line["source"], line["references"][0], tuple(line["references"][:1]))
        for line in lines
    ]
    fitting = dataclasses.replace(
        data, max_length=min(data.max_length, room), overflow="truncate_source"
    )
    return encode_examples(examples, tokenizer, fitting).rows
