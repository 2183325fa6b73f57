"""How the command line ends: by Ctrl-C, or with nobody listening."""

import os
import pkgutil
import subprocess
import sys

import jax
import pytest

from prefix_jax import cli

PROGRAM = "from prefix_jax.cli import program; program()"


def run_program(*arguments, code=PROGRAM, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_an_interrupt_ends_with_a_line(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("prefix_jax.cli_prefixes.generate", interrupted)
    with pytest.raises(SystemExit) as exit:
        cli.main(["generate"])
    assert exit.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "moment",
    [
        # Ctrl-C at the import of a module, and where Python loses KeyboardInterrupt.
        "sys.meta_path.insert(0, Finder('jax'))",
        "sys.meta_path.insert(0, Finder('transformers.utils'))",
        "gc.callbacks.append(lambda *_: 'jax' in sys.modules and press())",
    ],
    ids=["jax", "transformers", "a callback"],
)
def test_an_interrupt_while_libraries_load_ends_with_a_line(moment):
    code = f"""
import gc, os, signal, sys

def press():
    os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            press()

{moment}
{PROGRAM}
"""
    process = run_program("generate", "x", code=code, stdout=subprocess.PIPE)
    assert process.returncode == 130
    assert process.stderr == "interrupted\n" and process.stdout == ""


def test_help_and_mistakes_need_no_jax():
    code = (
        f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {PROGRAM}"
    )
    for arguments in (["--help"], ["train", "--help"], ["generate", "--prefx", "x"]):
        process = run_program(*arguments, code=code, stdout=subprocess.PIPE)
        loaded = process.stdout.splitlines()[-1].split()
        assert "prefix_jax.cli" in loaded
        assert not {"jax", "transformers", "numpy"} & set(loaded)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there_and_explains_itself(name, capsys):
    assert f"  {name} " in cli.USAGE
    with pytest.raises(SystemExit) as exit:
        pkgutil.resolve_name(cli.COMMANDS[name])(["--help"])
    assert exit.value.code == 0
    assert f"prefix-jax {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_nobody_listening_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    process = run_program(*arguments, stdout=write)
    os.close(write)
    assert process.stderr == "" and process.returncode == 141


def test_what_the_system_refuses_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    def write(arguments):
        (tmp_path / "nowhere" / "file").write_text("")

    monkeypatch.setattr("prefix_jax.cli_prefixes.export", write)
    with pytest.raises(SystemExit) as exit:
        cli.main(["export"])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/nowhere/file: No such file")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7 TiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 B."),
    ],
)
def test_too_little_memory_is_said_in_a_line(error, monkeypatch, capsys):
    def fill(arguments):
        raise error

    monkeypatch.setattr("prefix_jax.cli_prefixes.export", fill)
    with pytest.raises(SystemExit) as exit:
        cli.main(["export"])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    what = str(error).rstrip(".")
    assert said.startswith(f"error: out of memory: {what}; lower train.batch_size")
    assert said.count("\n") == 1


def test_help_says_that_evaluate_needs_no_recipe(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["evaluate", "--help"])
    assert exit.value.code == 0
    assert "the run recorded" in " ".join(capsys.readouterr().out.split())
