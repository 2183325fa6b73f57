"""The command line, and its commands that take a recipe."""

import argparse
import dataclasses
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from prefix_jax.cli_prefixes import export, generate, import_, inspect
from prefix_jax.config import Config
from prefix_jax.errors import InputError, closest

_Command = TypeVar("_Command", bound=Config)

USAGE = """\
usage: prefix-jax COMMAND ...

  train CONFIG      train a prefix (or, for comparison, the backbone) as a recipe says
  evaluate [CONFIG] score what a run left behind: loss and the task's scores; without
                    CONFIG by the recipe that the run recorded in its --workdir
  compare CONFIG    train and score several methods side by side
  generate          write with stored prefixes, from prompts, a file or standard input
  inspect DIR       what a stored prefix is: size, backbone, scores, norms, attention
  import SOURCE     store a prefix of PEFT, AdapterHub or Li & Liang's code as ours
  export DIR        write a prefix for PEFT, with a card

CONFIG is a recipe, a Python file with `config = Config(...)`; any of its values can be
overridden, for example --prefix.length 20 --train.steps 1000.

  prefix-jax train configs/quickstart.py --workdir runs/mine
  prefix-jax evaluate --workdir runs/mine
  prefix-jax inspect runs/mine
  prefix-jax export runs/mine --out my_adapter
  prefix-jax COMMAND --help    every option, with its meaning and default
"""


@dataclasses.dataclass(frozen=True)
class Train(Config):
    """Train a prefix; the same command goes on from the last checkpoint."""

    workdir: Path = Path("runs/latest")
    """Folder of the run: checkpoints, metrics, the best and the last prefix."""


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
    """Write texts for the first so many sources only."""


@dataclasses.dataclass(frozen=True)
class Compare(Config):
    """Train several methods for the same number of steps and score them."""

    workdir: Path = Path("runs/comparison")
    """Folder with one run for each method."""
    methods: tuple[Literal["none", "prefix", "top2", "full"], ...] = (
        "none",
        "prefix",
        "full",
    )
    """`none` is the backbone alone."""
    split: Literal["validation", "test"] = "test"
    limit: int | None = None
    """Write texts for the first so many sources only."""
    full_learning_rate: float | None = None
    """Learning rate of `full`; None: its default. So is the next."""
    top2_learning_rate: float | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; input that cannot be used ends with one message and status 2.

    So does Ctrl-C, with status 130. If nobody reads standard output any more (as
    after `| head`), it ends in silence.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            status = _run(arguments)
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # Else Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise InputError(
            f"unknown command {name!r}{closest(name, COMMANDS)}\n"
            f"expected one of {', '.join(COMMANDS)}"
        )
    return COMMANDS[name](rest)


def _train(arguments: list[str]) -> int:
    options = _with_recipe(Train, "train", arguments)
    from prefix_jax.runs.train import train

    return 0 if train(_config(options), options.workdir).finished else 130


def _evaluate(arguments: list[str]) -> int:
    options = _with_recipe(Evaluate, "evaluate", *_recorded(arguments))
    from rich.console import Console

    from prefix_jax.runs.evaluate import evaluate, evaluate_prefixes
    from prefix_jax.runs.prefixes import named_folders
    from prefix_jax.runs.report import print_evaluation

    config, workdir = _config(options), options.workdir
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
    console = Console()
    for result in results:
        print_evaluation(result, console)
    return 0


def _compare(arguments: list[str]) -> int:
    options = _with_recipe(Compare, "compare", arguments)
    from prefix_jax.runs.compare import compare

    rows = compare(
        _config(options),
        options.workdir,
        methods=options.methods,
        learning_rates={
            "full": options.full_learning_rate,
            "top2": options.top2_learning_rate,
        },
        split=options.split,
        limit=options.limit,
    )
    return 130 if rows is None else 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "generate": generate,
    "inspect": inspect,
    "import": import_,
    "export": export,
}


def load_recipe(path: Path) -> Config:
    """The `config` of a recipe file. A recipe is Python and is run: read it first.

    Raises InputError if there is no such file or it does not make a Config.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; a recipe is a Python file, such as my.py")
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.py")]
        raise InputError(f"recipe {path} does not exist{closest(str(path), beside)}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; a recipe ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise InputError(f"{path} makes no `config = Config(...)`; it must make one")
    return config


def _recorded(arguments: list[str]) -> tuple[list[str], Config | None]:
    """The arguments with a recipe first, or else the recipe of the run in --workdir."""
    parser = argparse.ArgumentParser("prefix-jax evaluate", add_help=False)
    parser.add_argument("--workdir", type=Path, default=Evaluate.workdir)
    known, rest = parser.parse_known_args(arguments)
    rest += ["--workdir", str(known.workdir)]
    if not rest[0].startswith("-") or _asks_for_help(rest):
        return rest, None
    from prefix_jax.runs.record import recorded_config

    return rest, recorded_config(known.workdir)


def _asks_for_help(arguments: list[str]) -> bool:
    return any(argument in ("-h", "--help") for argument in arguments)


def _with_recipe(
    command: type[_Command],
    name: str,
    arguments: list[str],
    recorded: Config | None = None,
) -> _Command:
    """The options over the recipe named first, or over `recorded`."""
    program = f"prefix-jax {name}"
    if arguments and not arguments[0].startswith("-"):
        recipe, *arguments = arguments
        default = command(**_sections(load_recipe(Path(recipe))))
        program = f"{program} {recipe}"
    elif recorded is not None:
        default = command(**_sections(recorded))
    elif _asks_for_help(arguments):
        default, program = command(), f"{program} CONFIG"
    else:
        raise InputError(
            f"{program} needs a recipe first: {program} configs/quickstart.py"
        )
    return tyro.cli(command, default=default, args=arguments, prog=program)


def _config(options: Config) -> Config:
    return Config(**_sections(options))


def _sections(config: Config) -> dict:
    return {
        field.name: getattr(config, field.name) for field in dataclasses.fields(Config)
    }
