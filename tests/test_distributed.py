"""How processes find each other, or say in a line that they cannot."""

import dataclasses
import importlib.util
import socket
import subprocess
import sys

import jax
import pytest
from conftest import REPOSITORY

from prefix_jax.cli import main
from prefix_jax.cli_options import parse
from prefix_jax.cli_recipes import Train
from prefix_jax.config import Config
from prefix_jax.distributed import ClusterConfig, joined
from prefix_jax.errors import InputError

PROGRAM = "from prefix_jax.cli import program; program()"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"coordinator": "a:1"},
            "cluster.coordinator without cluster.processes and cluster.process; give",
        ),
        (
            {"processes": 2, "process": 0},
            "cluster.processes and cluster.process without cluster.coordinator; give",
        ),
        ({"processes": 2}, "without cluster.coordinator and cluster.process"),
        (
            {"coordinator": "a:1", "processes": 2, "process": 2},
            "cluster.process is 2, but cluster.processes 2 are numbered 0 to 1",
        ),
        (
            {"coordinator": "http://a:1", "processes": 2, "process": 0},
            'cluster.coordinator is "http://a:1"; expected HOST:PORT',
        ),
        (
            {"coordinator": "a:65536", "processes": 2, "process": 0},
            'cluster.coordinator is "a:65536"; expected HOST:PORT',
        ),
        ({"processes": 0}, "cluster.processes is 0; expected a whole number from 1"),
        ({"process": -1}, "cluster.process is -1; expected a whole number from 0"),
    ],
)
def test_what_does_not_go_together_is_named(given, message):
    with pytest.raises(InputError) as error:
        ClusterConfig(**given)
    assert message in str(error.value)


@pytest.mark.parametrize("host", ["10.0.0.1", "[::1]", "tpu-0.pods", "localhost"])
def test_hosts(host):
    assert ClusterConfig(f"{host}:8476", 2, 1).process == 1


def test_options_are_of_the_command_and_not_of_the_run():
    given = ["--cluster.coordinator", "a:1", "--cluster.processes", "2"]
    options = parse(Train, [*given, "--cluster.process", "1"], "prefix-jax train")
    assert options.cluster == ClusterConfig("a:1", 2, 1)
    assert "cluster" not in {field.name for field in dataclasses.fields(Config)}


def test_a_mistake_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--cluster.process", "1"])
    assert exit.value.code == 2
    with pytest.raises(SystemExit) as exit:
        main(["train", "configs/quickstart.py", "--cluster.process", "1"])
    assert exit.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: cluster.process without cluster.coordinator and")


@pytest.fixture
def asked(monkeypatch):
    """What jax was asked to find, in a process that no cluster has started."""
    for name in ("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *given, **_: calls.append(given)
    )
    return calls


SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM, True),
        ({**SLURM, "SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # not started by srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # any pod has it
        ({"JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_process_looks_for_others_where_it_was_started_with_some(
    environment, several, asked, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(  # the package of jax's extra `k8s`
        importlib.util, "find_spec", lambda name: name == "kubernetes" or find(name)
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined(ClusterConfig()):
        assert asked == [(None, None, None)] * several
    asked.clear()
    with joined(ClusterConfig(processes=1)):
        assert asked == []


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, True),  # Google's metadata server is asked
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_PROCESS_ADDRESSES": "local"}, False),
    ],
)
def test_tpu_slices_are_several_processes(environment, several, asked, monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")
    try:
        with joined(ClusterConfig()):
            assert asked == [(None, None, None)] * several
    finally:
        jax.config.update("jax_platforms", before)


def test_a_port_that_is_taken_is_named_as_such():
    """jax says only that its server could not start, or dies of it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cluster = ["--cluster.coordinator", address, "--cluster.processes", "2"]
        cluster += ["--cluster.process", "0", "--cluster.timeout", "20"]
        recipe = str(REPOSITORY / "configs" / "quickstart.py")
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, "train", recipe, *cluster],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 2
    port = address.partition(":")[2]
    assert f"port {port} of cluster.coordinator cannot be opened" in ended.stderr
    assert "choose another" in ended.stderr and "Traceback" not in ended.stderr


def test_a_cluster_that_jax_cannot_read_is_an_error_of_one_line(monkeypatch, capsys):
    """Open MPI 5 no longer says where its first process is."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.delenv("OMPI_MCA_orte_hnp_uri", raising=False)

    def nowhere(*given, **_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nowhere)
    with (
        pytest.raises(InputError, match=r"cannot meet: coordinator_address .*Open MPI"),
        joined(ClusterConfig()),
    ):
        pass


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_commands_of_one_process_refuse_several(command, monkeypatch, capsys):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit:
        main([command, "configs/quickstart.py"])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: Slurm has started several processes, and {command} is of one; start "
        "one, or `train` and `evaluate` instead, which share the work\n"
    )


@pytest.mark.parametrize("process", ["0", "1"])
def test_processes_that_do_not_meet_end_with_a_line_in_time(process):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["train", "configs/quickstart.py", "--cluster.coordinator", coordinator]
    command += ["--cluster.processes", "2", "--cluster.process", process]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command, "--cluster.timeout", "1"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == (
        f"error: process {process}: the processes did not meet at {coordinator} within "
        "1 s; start all 2 processes, each with a number of its own, check that the "
        "first is reached under that address, or raise --cluster.timeout\n"
    )
