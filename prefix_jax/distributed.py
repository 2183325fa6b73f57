"""Several processes that are one run: how they find each other, and how they part.

All of them compute the same and see the same results; the first one alone writes files
and lines on the screen. jax is imported late: `--help` does without.
"""

import atexit
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

from prefix_jax.checks import NotNegative, Positive, Section, Size
from prefix_jax.errors import InputError, first_line


@dataclasses.dataclass(frozen=True)
class ClusterConfig(Section):
    """The processes of this run: found on TPU slices and under Slurm, Open MPI and
    Kubernetes, given here elsewhere. They are no part of what the run is."""

    coordinator: str | None = None
    """HOST:PORT of process 0, as the others reach it; the port is free there."""
    processes: Size | None = None
    """How many there are. 1: this one alone, whatever a cluster says."""
    process: NotNegative | None = None
    """The number of this one, from 0."""
    timeout: Positive = 300
    """Seconds in which all have to meet."""

    def __post_init__(self):
        super().__post_init__()
        names = ("coordinator", "processes", "process")
        given = [name for name in names if getattr(self, name) is not None]
        if given in ([], ["processes"]) and self.processes in (None, 1):
            return
        if missing := [f"cluster.{name}" for name in names if name not in given]:
            raise InputError(
                f"cluster.{' and cluster.'.join(given)} without "
                f"{' and '.join(missing)}; give all three, or none of them where a "
                "cluster says them"
            )
        assert self.coordinator and self.processes and self.process is not None
        if self.process >= self.processes:
            raise InputError(
                f"cluster.process is {self.process}, but cluster.processes "
                f"{self.processes} are numbered 0 to {self.processes - 1}"
            )
        host = re.fullmatch(r"(\[[\w:.]+\]|[^\s:/\[\]]+):(\d{1,5})", self.coordinator)
        if host is None or not 0 < int(host[2]) < 2**16:
            raise InputError(
                f'cluster.coordinator is "{self.coordinator}"; expected HOST:PORT, '
                "such as 10.0.0.1:8476"
            )


@contextlib.contextmanager
def joined(cluster: ClusterConfig, *, stops: bool = False) -> Iterator[None]:
    """Context in which this process is one of a run's, or alone.

    To be entered before anything asks jax for a device. On leaving, all wait for each
    other; a process that fails ends without, which ends the others too (at once if it
    is the first, else within jax's heartbeat, 100 s). `stops`: SIGTERM is for
    `reached_preemption_sync_point` to share; otherwise it ends the process, as always.
    Raises InputError where the processes cannot be found, and ends the process with a
    line where they do not meet in time.
    """
    _join(cluster, stops)
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    if not jax.distributed.is_initialized():
        yield
        return
    try:
        yield
        # jax itself waits for five minutes only; the first may have more to write.
        sync_global_devices("the end")
    except BaseException as error:
        # Runs before jax's own end, which would wait for the others.
        atexit.register(_end, 2 if isinstance(error, InputError | OSError) else 1)
        raise


def check_alike(values: Mapping[str, object]) -> None:
    """InputError, in every process, for values (JSON) that are not the same in all."""
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    if jax.process_count() == 1:
        return
    own = np.frombuffer(json.dumps(values).encode(), np.uint8)
    sizes = process_allgather(np.int32(len(own)))
    padded = np.pad(own, (0, sizes.max() - len(own)), constant_values=ord(" "))
    first, *others = [json.loads(row.tobytes()) for row in process_allgather(padded)]
    differences = [
        f"{name}: {value} in process 0, {other.get(name)} in process {number}"
        for number, other in enumerate(others, 1)
        for name, value in first.items()
        if other.get(name) != value
    ]
    if differences:
        raise InputError(
            "the processes of a run must be given the same:\n  "
            + "\n  ".join(differences[:6])
        )


def check_alone(command: str) -> None:
    """InputError for a command of one process where several were started."""
    if (launcher := _launcher()) not in (None, "TPU VM"):
        raise InputError(
            f"{launcher} has started several processes, and {command} is of one; "
            "start one, or `train` and `evaluate` instead, which share the work"
        )


def is_first() -> bool:
    """Whether this process is the one that writes."""
    import jax

    return jax.process_index() == 0


def _join(cluster: ClusterConfig, stops: bool) -> None:
    import jax

    launcher = _launcher()
    if cluster.coordinator is None and (cluster.processes or not launcher):
        return
    if jax.distributed.is_initialized():
        return
    if cluster.process == 0:
        assert cluster.coordinator
        _check_port(int(cluster.coordinator.rpartition(":")[2]))
    jax.config.update("jax_enable_preemption_service", stops)
    # If jax waits in vain it ends the process with a trace of its own machinery.
    watch = threading.Timer(cluster.timeout, _give_up, [cluster, launcher])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            # What is given holds as it is, inside a cluster too.
            cluster_detection_method="deactivate" if cluster.coordinator else None,
            initialization_timeout=2 * cluster.timeout,
        )
    except Exception as error:
        if launcher == "TPU VM" and isinstance(error, ValueError):
            return  # one that its metadata do not say to be a slice's
        raise InputError(
            f"the processes of this run cannot meet: {first_line(error)} "
            f"({cluster.coordinator or launcher}); give --cluster.coordinator "
            "HOST:PORT, --cluster.processes and --cluster.process, or "
            "--cluster.processes 1 for a run of this process alone"
        ) from error
    finally:
        watch.cancel()


def _check_port(port: int) -> None:
    """InputError for one that is taken, of which jax may die without a word."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        raise InputError(
            f"port {port} of cluster.coordinator cannot be opened here, on process 0: "
            f"{error.strerror}; choose another, the same for all processes"
        ) from error


def _launcher() -> str | None:
    """Who says that this process is one of several; None where nobody does.

    jax finds the others by itself, but cannot be asked whether there are any, and
    fails where there are none.
    """
    import jax

    says = os.environ.get
    if "SLURM_STEP_NODELIST" in os.environ and says("SLURM_NTASKS", "1") != "1":
        return "Slurm"
    if says("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    # jax puts TPUs first where there are some, unless it was told to use others.
    if (getattr(jax.config, "jax_platforms") or "").startswith("tpu"):  # noqa: B009
        hosts = says("TPU_PROCESS_ADDRESSES", says("TPU_WORKER_HOSTNAMES"))
        if hosts is None:
            # Only Google's metadata server knows; without TPUs jax sets this.
            return None if says("TPU_SKIP_MDS_QUERY") else "TPU VM"
        several = "," in hosts or says("MEGASCALE_NUM_SLICES", "1") != "1"
        return "GKE" if several else None
    # jax asks Kubernetes with this package, which is in its extra `k8s`.
    if "JOB_COMPLETION_INDEX" in os.environ and importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    return None


def _give_up(cluster: ClusterConfig, launcher: str | None) -> None:
    here = "" if cluster.process is None else f"process {cluster.process}: "
    where = cluster.coordinator or f"where {launcher} says"
    number = cluster.processes or "their"
    sys.stderr.write(
        f"error: {here}the processes did not meet at {where} within "
        f"{cluster.timeout} s; start all {number} processes, each with a number of its "
        "own, check that the first is reached under that address, or raise "
        "--cluster.timeout\n"
    )
    _end(2)


def _end(status: int) -> None:
    """End this process, now."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
