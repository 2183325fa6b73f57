"""Commands that take a recipe: train, evaluate, compare, compile; and `report`."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prefix_jax.cli_options import (
    asks_for_help,
    config_of,
    parse,
    with_recipe,
)
from prefix_jax.config import Config
from prefix_jax.distributed import ClusterConfig, check_alone, is_first, joined
from prefix_jax.errors import InputError
from prefix_jax.runs.interrupt import stopped_status


@dataclasses.dataclass(frozen=True)
class Train(Config):
    """Train a prefix; the same command goes on from the last checkpoint."""

    workdir: Path = Path("runs/latest")
    """Folder of the run, or gs://BUCKET/FOLDER: checkpoints, metrics, the best and the
    last prefix."""
    cluster: ClusterConfig = ClusterConfig()


@dataclasses.dataclass(frozen=True)
class Evaluate(Config):
    """Loss, perplexity and the task's scores on a held-out split.

    Without a recipe before the options, the one that the run recorded holds.
    Several stored prefixes are scored in one go: --prefix a=DIR --prefix b=DIR, each on
    every row, or on the rows that name it in a column (--data.prefix-column). For
    example:

    prefix-jax evaluate --workdir runs/mine --split validation

    prefix-jax evaluate configs/quickstart.py --prefix runs/mine --prefix b=runs/other
    """

    workdir: Path = Path("runs/latest")
    """Folder of the run to score, or to write the scores of each --prefix in."""
    prefixes: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="prefix")
    ] = ()
    """Folder of a prefix, or of the run that trained it, or NAME=FOLDER; instead of the
    run in --workdir."""
    split: Literal["train", "validation", "test"] = "test"
    which: Literal["best", "last", "none"] = "best"
    """The best prefix on validation, the last, or the backbone alone."""
    limit: int | None = None
    """Score the first so many sources only, each with all of its references."""
    cluster: ClusterConfig = ClusterConfig()


@dataclasses.dataclass(frozen=True)
class Compare(Config):
    """Train several methods for the same number of steps and score them."""

    workdir: Path = Path("runs/comparison")
    """Folder with one run for each method."""
    methods: tuple[Literal["none", "prefix", "embedding", "top2", "full"], ...] = (
        "none",
        "prefix",
        "full",
    )
    """`none` is the backbone alone, `embedding` prompt tuning of the same length."""
    split: Literal["validation", "test"] = "test"
    limit: int | None = None
    """Score the first so many sources only, each with all of its references."""
    full_learning_rate: float | None = None
    """Learning rate of `full`; None: its default. So are the next two."""
    top2_learning_rate: float | None = None
    embedding_learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Compile(Config):
    """Compile the training step and the decoding loop for a TPU slice, without one.

    Prints each device's memory and what devices send to each other; ends with status 1
    where a program does not fit the chips' memory. Needs the extra `tpu`. For example:

    prefix-jax compile configs/e2e_gpt2_medium.py --topology v5e:2x2 v5e:4x4

    prefix-jax compile configs/e2e_gpt2_large.py --topology v4:2x2x1 --mesh.fsdp 4
    """

    topology: tuple[str, ...] = ("v5e:4x4",)
    """Slices: chip, and chips along each axis, such as v4:2x2x1, v5p:2x2x1, v6e:2x2."""
    programs: tuple[Literal["train", "decode"], ...] = ("train", "decode")
    """What to compile."""
    out: Path | None = None
    """File for the same as JSON."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one HTML page of runs: curves, scores, samples, attention, settings.

    The page is one file that needs no network. RUNS are the folders of `train`
    (--workdir), and of `compare` and `sweep`, which hold several; NAME=FOLDER says what
    to call one. A run that is interrupted or not evaluated yet is shown as far as it
    is. For example:

    prefix-jax report runs/quickstart --out quickstart.html

    prefix-jax report ten=runs/a forty=runs/b
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of runs, comparisons and sweeps."""
    out: Path = Path("report.html")
    """File to write; a report that is there is replaced."""
    overwrite: bool = False
    """Replace the file that is there, whatever it is."""
    samples: int = 6
    """Sources to show with what each run wrote for them."""
    attention: bool = True
    """Load the backbones, to measure the attention that each layer and head pays to the
    prefixes."""


def train(arguments: list[str]) -> int:
    options = with_recipe(Train, "train", arguments)
    if options.mesh.parallel == "pmap" and (options.cluster.processes or 1) > 1:
        raise InputError(
            'mesh.parallel is "pmap", which is for a single process, but cluster.'
            f"processes is {options.cluster.processes}; give --mesh.parallel jit"
        )
    with joined(options.cluster, stops=True):
        from prefix_jax.runs.train import train

        config = config_of(options)
        _foretell(config)
        finished = train(config, options.workdir).finished
    return 0 if finished else stopped_status()


def _foretell(config: Config) -> None:
    """Say before the training what `evaluate` would refuse after it."""
    if not config.score.metrics:  # a task's usual scores are always there
        return
    from prefix_jax.scoring.metrics import metrics_of

    try:
        metrics_of(config.data.task, config.score.metrics)
    except InputError as error:
        if is_first():
            print(
                f"training goes on, but evaluate would fail: {error}", file=sys.stderr
            )


def evaluate(arguments: list[str]) -> int:
    options = with_recipe(Evaluate, "evaluate", *_recorded(arguments))
    with joined(options.cluster):
        _evaluate(options)
    return 0


def _evaluate(options: Evaluate) -> None:
    from prefix_jax.runs.evaluate import evaluate, evaluate_prefixes
    from prefix_jax.runs.evaluation import print_evaluation
    from prefix_jax.runs.prefixes import named_folders
    from prefix_jax.runs.progress import screen

    config, workdir = config_of(options), options.workdir
    split, limit = options.split, options.limit
    if options.prefixes:
        if options.which != "best":
            raise InputError(
                f"--which {options.which} is of the run in --workdir; with --prefix "
                "leave it out, or name the folder, such as runs/latest/last"
            )
        folders = named_folders(options.prefixes)
        results = evaluate_prefixes(config, folders, workdir, split=split, limit=limit)
    else:
        which = options.which
        results = [evaluate(config, workdir, split=split, which=which, limit=limit)]
    console = screen()
    for result in results:
        print_evaluation(result, console)


def compare(arguments: list[str]) -> int:
    options = with_recipe(Compare, "compare", arguments)
    check_alone("compare")
    from prefix_jax.runs.compare import compare

    rows = compare(
        config_of(options),
        options.workdir,
        methods=options.methods,
        learning_rates={
            "full": options.full_learning_rate,
            "top2": options.top2_learning_rate,
            "embedding": options.embedding_learning_rate,
        },
        split=options.split,
        limit=options.limit,
    )
    return stopped_status() if rows is None else 0


def compile_(arguments: list[str]) -> int:
    options = with_recipe(Compile, "compile", arguments)
    # Nothing runs here: jax need not look for a TPU, or complain that there is none.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import json

    from rich.console import Console

    from prefix_jax.runs.compile import compile_programs, print_compiled, slice_mesh

    config = config_of(options)
    if options.out is not None:
        if not options.out.parent.is_dir():
            where = f"{options.out.parent} is no folder"
            raise InputError(f"out is {options.out}, but {where}")
        if options.out.is_dir():
            raise InputError(f"out is {options.out}, a folder; give a file")
    if not options.topology:
        raise InputError("topology is empty; name a slice, such as v5e:4x4")
    for topology in options.topology:
        slice_mesh(config, topology)  # before the first takes its minutes
    found, console = [], Console()
    for topology in options.topology:
        each = compile_programs(config, topology, options.programs, say=print)
        print_compiled(each, console)
        found += each
    if options.out is not None:
        report = [{**dataclasses.asdict(one), "fits": not one.refusal} for one in found]
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if any(one.refusal for one in found) else 0


def report(arguments: list[str]) -> int:
    options = parse(Report, arguments, "prefix-jax report")
    from prefix_jax.runs.report import report

    done = report(
        options.runs,
        options.out,
        overwrite=options.overwrite,
        samples=options.samples,
        attention=options.attention,
        command=shlex.join(["prefix-jax", "report", *arguments]),
    )
    number = "1 run" if done.runs == 1 else f"{done.runs} runs"
    print(f"{number} in {done.path} ({done.size:,} bytes)")
    return 0


def _recorded(arguments: list[str]) -> tuple[list[str], Config | None]:
    """The arguments with a recipe first, or else the recipe of the run in --workdir."""
    rest, workdir = _without_workdir(arguments)
    own = bool(rest) and not rest[0].startswith("-")
    if workdir is not None:
        rest += ["--workdir", workdir]
    if own or asks_for_help(rest):
        return rest, None
    from prefix_jax.runs.record import recorded_config

    return rest, recorded_config(Path(workdir or Evaluate.workdir))


def _without_workdir(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without the last --workdir, and its value."""
    for place in reversed(range(len(arguments))):
        option, equals, value = arguments[place].partition("=")
        if option == "--workdir":
            end = place + (1 if equals else 2)
            found = [value] if equals else arguments[place + 1 : end]
            if not found:
                raise InputError("--workdir has no value; expected a path")
            return arguments[:place] + arguments[end:], found[0]
    return list(arguments), None
