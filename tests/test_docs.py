"""What docs/ tells people to run is well-formed, with options that there are."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from test_readme import blocks

from prefix_jax.cli_options import parse, with_recipe
from prefix_jax.cli_recipes import Evaluate, Train
from prefix_jax.config import Config
from prefix_jax.storage.remote import in_bucket

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
SHELL = [
    *blocks("sh", (DOCS / "tpu_vm.md").read_text(encoding="utf-8")),
    (DOCS / "slurm.sh").read_text(encoding="utf-8"),
]


@pytest.mark.parametrize("script", SHELL)
def test_the_shell_reads_it(script):
    subprocess.run(["bash", "-n", "-c", script], check=True)


def job() -> dict:
    manifest = yaml.safe_load((DOCS / "gke_jobset.yaml").read_text(encoding="utf-8"))
    assert manifest["kind"] == "JobSet"
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    [replicated] = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container() -> dict:
    [found] = job()["template"]["spec"]["containers"]
    return found


def commands() -> list[list[str]]:
    """Those of prefix-jax, wherever they stand."""
    text = "\n".join(SHELL).replace("\\\n", "")
    found = re.findall(r"prefix-jax ((?:train|evaluate) [^\"\n]*)", text)
    return [shlex.split(one) for one in found] + [container()["command"][1:]]


def options(command: list[str]) -> Config:
    name, *rest = command
    if name == "evaluate":
        return parse(Evaluate, rest, "prefix-jax evaluate")
    rest[0] = str(REPOSITORY / rest[0].removeprefix("prefix_jax/"))
    return with_recipe(Train, "train", rest)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_options_are_there(command):
    given = options(command)
    assert (in_bucket(given.workdir) or str(given.workdir)) in " ".join(command)
    if command[0] == "train":
        assert given.train.batch_size == 16


def test_there_are_commands_in_all_files():
    assert len(commands()) == 7


def test_the_jobset_is_a_whole_slice():
    """A pod for each of its machines, all at once, and all of its chips."""
    spec = job()
    pods = spec["template"]["spec"]
    across, down = pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container()["resources"]["limits"]["google.com/tpu"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert spec["parallelism"] * chips == int(across) * int(down)
    mounted = {mount["name"] for mount in container()["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pods["volumes"]}
