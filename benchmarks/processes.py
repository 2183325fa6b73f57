"""Real processes, disks and files of a training run, for `faults.py`."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prefix_jax.storage.log import read_metrics

UNSAID = "NOT SAID: "
PATIENCE = 300
"""Seconds after which a process counts as hanging for ever, and is killed."""


class Runs:
    """The processes of one run, whose output goes to files."""

    def __init__(self, home: Path, recipe: Path, workdir: Path, number: int = 1):
        self.workdir, self.number = workdir, number
        self._home, self._recipe = home, recipe
        self._processes: list[subprocess.Popen] = []

    def start(self, *options: str) -> None:
        """The command of a user, once for each process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        self._logs = [self._home / f"log_{i}" for i in range(self.number)]
        self._processes = []
        for process, log in enumerate(self._logs):
            words = [sys.executable, "-m", "prefix_jax", "train", str(self._recipe)]
            words += ["--workdir", str(self.workdir), *options]
            if self.number > 1:
                words += ["--mesh.data", str(self.number)]
                words += ["--cluster.coordinator", coordinator]
                words += ["--cluster.processes", str(self.number)]
                words += ["--cluster.process", str(process)]
            with log.open("w") as file:
                self._processes.append(
                    subprocess.Popen(
                        words,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    )
                )

    def command(self, *words: str) -> None:
        """Another command than `train`, of one process."""
        self._logs = [self._home / "log_0"]
        with self._logs[0].open("w") as file:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-m", "prefix_jax", *words],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            ]

    def until(self, met: Callable[[], bool]) -> None:
        """Wait for something, as long as all processes are there, and not for ever."""
        end = time.monotonic() + PATIENCE
        while not met() and time.monotonic() < end:
            if any(process.poll() is not None for process in self._processes):
                return
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        """Wait until it is logged; the fault is to hit a run that is well."""
        self.until(lambda: self.step() >= step)
        if self.step() < step or any(p.poll() is not None for p in self._processes):
            raise SystemExit(f"it did not come to step {step}: {self.said('error')}")

    def close(self) -> None:
        """No process outlives the benchmark."""
        for process in self._processes:
            process.kill()
            process.wait()

    def step(self) -> int:
        """The last that is logged."""
        with contextlib.suppress(ValueError, OSError):
            return max((line["step"] for line in read_metrics(self.workdir)), default=0)
        return 0

    def send(self, number: int, process: int = 0) -> None:
        """A signal."""
        self._processes[process].send_signal(number)

    def ends(self) -> tuple[list[int | None], list[float]]:
        """The status of each process, and after how many seconds it ended."""
        began = time.monotonic()
        took: dict[int, float] = {}
        while len(took) < self.number and time.monotonic() - began < PATIENCE:
            for i, process in enumerate(self._processes):
                if i not in took and process.poll() is not None:
                    took[i] = time.monotonic() - began
            time.sleep(0.02)
        statuses: list[int | None] = []
        for i, process in enumerate(self._processes):
            process.kill()
            process.wait()
            statuses.append(process.returncode if i in took else None)
        return statuses, [round(took.get(i, PATIENCE), 1) for i in range(self.number)]

    def says(self, pattern: str) -> bool:
        """Whether a line that matches is there."""
        return not self.said(pattern).startswith(UNSAID)

    def said(self, pattern: str) -> str:
        """The first line that matches, of any process; else their last lines."""
        texts = [log.read_text(errors="replace") for log in self._logs]
        for text in texts:
            for line in text.splitlines():
                if re.search(pattern, line):
                    return line.replace(str(self._home) + "/", "").strip()
        return UNSAID + " | ".join(text[-300:] for text in texts)


def steps(workdir: Path) -> list[Path]:
    """The folders of the checkpoints, the newest last."""
    found = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def largest(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own, in memory."""
    folder.mkdir(exist_ok=True)
    mount(options, folder, "-t", "tmpfs", "tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def mount(options: str, folder: Path, *words: str) -> None:
    done = subprocess.run(
        ["mount", *words, "-o", options, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(done.stderr.strip())
