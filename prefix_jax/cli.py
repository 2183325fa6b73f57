"""The command line: prefix-jax train | evaluate | compare | generate."""

import dataclasses
import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from prefix_jax.config import Config, DecodeConfig
from prefix_jax.errors import InputError

_Command = TypeVar("_Command", bound=Config)

USAGE = """\
usage: prefix-jax COMMAND ...

  train CONFIG      train a prefix (or, for comparison, the backbone) as a recipe says
  evaluate CONFIG   score what a run left behind: loss, perplexity, BLEU
  compare CONFIG    train and score several methods side by side
  generate          write with a stored prefix, from prompts, a file or standard input

CONFIG is a recipe, a Python file with `config = Config(...)`; any of its values can be
overridden, for example --prefix.length 20 --train.steps 1000.

  prefix-jax train configs/quickstart.py --workdir runs/mine
  prefix-jax COMMAND --help    every option, with its meaning and default
"""


@dataclasses.dataclass(frozen=True)
class Train(Config):
    """Train a prefix; the same command goes on from the last checkpoint."""

    workdir: Path = Path("runs/latest")
    """Folder of the run: checkpoints, metrics, the best and the last prefix."""


@dataclasses.dataclass(frozen=True)
class Evaluate(Config):
    """Loss, perplexity and BLEU on a held-out split."""

    workdir: Path = Path("runs/latest")
    """Folder of the run to score."""
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


@dataclasses.dataclass(frozen=True)
class Generate:
    """Write with a stored prefix; one text per prompt on standard output."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Prompts; without any (and without --file) they are read from standard input."""
    prefix: Path | None = None
    """Folder of a prefix, or of the run that trained it. None: the backbone alone."""
    backbone: str | None = None
    """Backbone's name or folder. None: the one the prefix was trained on."""
    file: Path | None = None
    """Text file with one prompt a line."""
    task: Literal["table_to_text", "language_modelling"] | None = None
    """What a prompt is: a source, or text to continue. None: as the prefix learned."""
    decode: DecodeConfig = DecodeConfig()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; input that cannot be used ends with one message and status 2."""
    # Else transformers greets everybody with the news that there is no PyTorch.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_run(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"unknown command {name!r}{hint}\nexpected one of {', '.join(COMMANDS)}"
        )
    return COMMANDS[name](rest)


def _train(arguments: list[str]) -> int:
    options = _with_recipe(Train, "train", arguments)
    from prefix_jax.runs.train import train

    return 0 if train(_config(options), options.workdir).finished else 130


def _evaluate(arguments: list[str]) -> int:
    options = _with_recipe(Evaluate, "evaluate", arguments)
    from prefix_jax.runs.evaluate import evaluate

    result = evaluate(
        _config(options),
        options.workdir,
        split=options.split,
        which=options.which,
        limit=options.limit,
    )
    print(
        f"{result.split}, {result.which}: loss {result.loss:.4f} nats per target "
        f"token, perplexity {result.perplexity:.3f}"
        + ("" if result.bleu is None else f", BLEU {result.bleu:.2f}")
        + f" ({result.sources:,} sources, {result.tokens:,} target tokens)"
    )
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


def _generate(arguments: list[str]) -> int:
    options = tyro.cli(Generate, prog="prefix-jax generate", args=arguments)
    from prefix_jax.runs.generate import open_writer, read_prompts

    prompts = options.prompts or read_prompts(options.file)
    writer = open_writer(options.prefix, options.backbone, options.task)
    for text in writer.write(prompts, options.decode):
        print(" ".join(text.splitlines()))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "generate": _generate,
}


def load_recipe(path: Path) -> Config:
    """The `config` of a recipe file. A recipe is Python and is run: read it first.

    Raises InputError if there is no such file or it does not make a Config.
    """
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py"))
        close = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise InputError(f"recipe {path} does not exist{hint}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; a recipe ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise InputError(f"{path} makes no `config = Config(...)`; it must make one")
    return config


def _with_recipe(command: type[_Command], name: str, arguments: list[str]) -> _Command:
    program = f"prefix-jax {name}"
    if arguments and not arguments[0].startswith("-"):
        recipe, *arguments = arguments
        default = command(**_sections(load_recipe(Path(recipe))))
        program = f"{program} {recipe}"
    elif any(argument in ("-h", "--help") for argument in arguments):
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
