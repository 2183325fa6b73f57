"""Every command of the README runs."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from prefix_jax.cli import main

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("heading", ["Quick start", "Tests"])
def test_heading_has_exactly_one_command(heading):
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith(f"{heading}\n")]
    [block] = blocks("sh", text)
    assert len(block.strip().splitlines()) == 1


def commands() -> list[str]:
    """The README's shell commands, but for the set-up, the tests, and data to bring."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    last = [line.split(" && ")[-1].removeprefix(".venv/bin/") for line in lines]
    ours = [line for line in last if line.startswith(("prefix-jax ", "echo "))]
    return [line for line in ours if "FOLDER" not in line]


@pytest.mark.slow
def test_commands_run_in_order(tmp_path, monkeypatch, capsys):
    """As written, but with fewer steps and texts where there are options for it."""
    fewer = ["--train.steps", "2", "--train.eval-every", "2"]
    fewer += ["--train.eval-batches", "1"]
    fewer += ["--decode.max-new-tokens", "4", "--mesh.data", "1"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    run = []
    for command in commands():
        program, *arguments = shlex.split(command)
        if program == "echo":
            subprocess.run(command, shell=True, check=True)
            continue
        run.append(arguments[0])
        extra = {
            "train": fewer,
            "evaluate": [*fewer, "--limit", "2"],
            "compare": [*fewer, "--limit", "2"],
            "sweep": ["--dry-run"],  # tests/runs/test_sweep.py runs one
        }.get(arguments[0], [])
        with pytest.raises(SystemExit) as exit:
            main([*arguments, *extra])
        assert exit.value.code == 0, (command, capsys.readouterr().err)
    shown = {"compare", "sweep", "train", "evaluate", "report", "generate", "inspect"}
    assert shown | {"export", "shorten"} <= set(run)


@pytest.mark.slow
def test_python_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    first = capsys.readouterr().out.splitlines()[0]
    assert float(first) < 3.0  # the prefix has learned its one sentence
    assert (tmp_path / "my_prefix" / "adapter_config.json").exists()
