"""Two processes are one run (law 7), and its files are written once."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rounding import STEPS, SUM
from safetensors.numpy import load_file

from prefix_jax.runs.evaluate import evaluate
from prefix_jax.runs.record import alone_in
from prefix_jax.runs.train import train
from runs.support import lines, quiet, recipe

SCRIPT = Path(__file__).with_name("one_of_two.py")
SECONDS = 300
"""After which a process is killed: one that waits for the other would hang for ever."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    """Folder of what the pair did, with the end of each process."""
    folder = tmp_path_factory.mktemp("two")
    recipe(folder / "recipe.py", config.replaced({"mesh.data": None}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    with alone_in(folder / "taken"):
        pair = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(number), coordinator, str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        try:
            said = [process.communicate(timeout=SECONDS) for process in pair]
        finally:
            # jax takes SIGTERM for itself.
            for process in pair:
                process.kill()
                process.wait()
    for number, (_, errors) in enumerate(said):
        assert (folder / f"found_{number}.json").exists(), errors[-3000:]
    return folder, [process.returncode for process in pair], said


@pytest.fixture(scope="module")
def single(config, tmp_path_factory):
    """The same run of one process with two devices."""
    workdir = tmp_path_factory.mktemp("single")
    alone = config.replaced({"mesh.data": 2})
    train(alone, workdir, quiet())
    evaluate(alone, workdir, console=quiet())
    return workdir


def found(folder, process):
    return json.loads((folder / f"found_{process}.json").read_text())


def test_the_losses_are_those_of_one_process_with_as_many_devices(two, single):
    """After a crash too: no line is missing and none is there twice."""
    run = two[0] / "run"
    there, here = lines(run), lines(single)
    for one, other in zip(there, here, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, str):
                assert value == other[name]
            else:
                np.testing.assert_allclose(value, other[name], **SUM)
    assert (run / "samples.jsonl").read_text() == (single / "samples.jsonl").read_text()


@pytest.mark.parametrize("name", ["best", "last"])
def test_the_prefix_is_the_same(two, single, name):
    one, other = (
        load_file(folder / name / "adapter_model.safetensors")
        for folder in (two[0] / "run", single)
    )
    for tensor, value in one.items():
        np.testing.assert_allclose(value, other[tensor], **STEPS)


def test_scores_and_texts_are_the_same(two, single):
    one, other = (
        json.loads((folder / "scores_test_best.json").read_text())
        for folder in (two[0] / "run", single)
    )
    assert one["scores"] == other["scores"] and one["tokens"] == other["tokens"]
    np.testing.assert_allclose(one["loss"], other["loss"], **SUM)
    name = "outputs_test_best.txt"
    assert (two[0] / "run" / name).read_text() == (single / name).read_text()


def test_all_processes_know_how_it_ended_and_the_first_one_tells(two):
    folder, _, said = two
    for number in range(2):
        results = found(folder, number)
        assert results["processes"] == [number, 2]
        assert (results["going on"], results["scored"], results["parted"]) == (0, 0, 0)
    first, second = (output for output, _ in said)
    assert "going on from step 4" in first and "test, best: loss" in first
    assert [line for line in second.splitlines() if "[Gloo]" not in line] == []


def test_what_the_processes_are_given_unlike_is_named_in_all(two):
    for number in range(2):
        assert found(two[0], number)["unlike"] == (
            "the processes of a run must be given the same:\n"
            "  train.seed: 0 in process 0, 1 in process 1"
        )


def test_a_failure_of_one_is_told_and_ends_the_other(two):
    _, codes, said = two
    assert codes[0] == 2 and codes[1] != 0
    assert "another process is training in" in said[0][1].split("now one fails")[1]
