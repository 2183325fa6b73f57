"""Every wrong option ends with one error in one style, for all commands alike."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from prefix_jax.checks import Section, Size
from prefix_jax.cli_options import parse
from prefix_jax.config import Config
from prefix_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class InnerConfig(Section):
    size: Size | None = 3
    kind: Literal["flat", "mlp"] = "flat"
    on: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    place: tyro.conf.Positional[Path]
    out: Path
    names: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="inner")
    ] = ()
    methods: tuple[Literal["none", "full"], ...] = ("none",)
    rate: float | None = None
    inner: InnerConfig = InnerConfig()


SIZE = "a whole number from 1 to 1,000,000, or None"
GIVEN = ["here", "--out", "there"]


def test_right_options_are_read():
    arguments = ["--inner.size", "5", "--inner", "a", "--inner", "b", "--rate=1e-3"]
    options = parse(Options, [*GIVEN, *arguments, "--inner.on"], "prog x")
    inner = InnerConfig(size=5, on=True)
    expected = Options(
        Path("here"), Path("there"), names=("a", "b"), rate=1e-3, inner=inner
    )
    assert options == expected
    again = parse(Options, ["--inner.no-on"], "prog x", default=options)
    assert again == dataclasses.replace(
        expected, inner=dataclasses.replace(inner, on=False)
    )
    assert parse(Options, ["--inner.size", "None"], "x", options).inner.size is None


def test_a_name_in_a_message_can_be_pasted_behind_two_dashes():
    """Messages name a field as a recipe does, `train.batch_size`, the help with `-`."""
    for name in ("--train.batch_size", "--train.batch-size"):
        assert parse(Config, [name, "5"], "x").train.batch_size == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*GIVEN, "--inner.sise", "3"],
            'prog x has no option --inner.sise; did you mean "--inner.size"? '
            "(see prog x --help)",
        ),
        ([*GIVEN, "-q"], "prog x has no option -q (see prog x --help)"),
        (
            [*GIVEN, "--inner.size", "x"],
            f'--inner.size is "x"; expected {SIZE}',
        ),
        (
            ["--inner.size", "x", *GIVEN],
            f'--inner.size is "x"; expected {SIZE}',
        ),
        (
            [*GIVEN, "--inner.size=1.5"],
            f'--inner.size is "1.5"; expected {SIZE}',
        ),
        (
            [*GIVEN, "--inner.size"],
            f"--inner.size has no value; expected {SIZE}",
        ),
        (
            [*GIVEN, "--inner.size", "0"],
            f"inner.size is 0; expected {SIZE}",
        ),
        (
            [*GIVEN, "--inner.kind", "flt"],
            '--inner.kind is "flt"; expected one of "flat", "mlp"; '
            'did you mean "flat"?',
        ),
        (
            [*GIVEN, "--methods", "none", "fulll"],
            '--methods is "fulll"; expected a tuple, of one of "none", "full" each; '
            'did you mean "full"?',
        ),
        (
            [*GIVEN, "--rate", "fast"],
            '--rate is "fast"; expected a finite number, or None',
        ),
        (["here"], "prog x needs PLACE and --out; got here (see prog x --help)"),
        ([], "prog x needs PLACE and --out; got nothing (see prog x --help)"),
        (["--out"], "--out has no value; expected a path"),
        ([*GIVEN, "more"], 'prog x: "more" belongs to no option (see prog x --help)'),
        (
            [*GIVEN, "inner.size", "5"],
            'prog x: "inner.size" belongs to no option; did you mean "--inner.size"? '
            "(see prog x --help)",
        ),
        (
            [*GIVEN, "--inner.on", "yes"],
            'prog x: "yes" belongs to no option (see prog x --help)',
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_explained(arguments, message, capsys):
    with pytest.raises(InputError) as error:
        parse(Options, arguments, "prog x")
    assert str(error.value) == message
    assert capsys.readouterr() == ("", "")
