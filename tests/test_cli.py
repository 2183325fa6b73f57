"""How the command line ends: by Ctrl-C, or with nobody listening."""

import os
import subprocess
import sys

import pytest

from prefix_jax import cli


def test_an_interrupt_ends_with_a_line(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "generate", interrupted)
    with pytest.raises(SystemExit) as exit:
        cli.main(["generate"])
    assert exit.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_nobody_listening_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-c", "from prefix_jax.cli import main; main()", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert process.stderr == "" and process.returncode == 141


def test_help_says_that_evaluate_needs_no_recipe(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["evaluate", "--help"])
    assert exit.value.code == 0
    assert "the run recorded" in " ".join(capsys.readouterr().out.split())
