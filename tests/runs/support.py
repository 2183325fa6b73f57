"""What tests of whole runs share besides fixtures."""

import io

import pytest
from rich.console import Console

from prefix_jax.cli import main
from prefix_jax.storage.log import read_metrics


class Crash(Exception):
    pass


def quiet():
    return Console(file=io.StringIO(), width=120)


def lines(workdir):
    """The metrics, without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if k != "tokens_per_second"}
        for line in read_metrics(workdir)
    ]


def recipe(path, config):
    path.write_text(f"from prefix_jax.config import *\nconfig = {config!r}\n")
    return str(path)


def run_cli(*arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    return exit.value.code
