"""What does a user see when something goes wrong, and is anything lost?

Each fault is done to real processes that train on `tiny`: signals, a process of two
that dies or hangs, a disk that is full or read-only, damaged files, numbers that are
not finite. What each process ended with, after how many seconds, and the line that
says why. Then the same command goes on, where that is promised; its final state and
metrics must be those of a run that nothing happened to.

    python benchmarks/faults.py --out FILE.json --markdown FILE.md

Disks need the right to mount (root, Linux); without it they are left out, and said to
be. Status 1 where a promise was not held.
"""

import argparse
import contextlib
import dataclasses
import functools
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from kill_resume import RECIPE, outcome
from processes import UNSAID, Runs, largest, mount, mounted, steps
from reports import write_report

from prefix_jax.errors import shortened

STEPS = 12
WATCHDOG = 60
"""Seconds of `train.watchdog` where a process hangs."""


@dataclasses.dataclass
class Found:
    """What came of a fault."""

    fault: str
    statuses: list[int | None]
    """Of each process; negative: of a signal, None: it had to be killed."""
    seconds: list[float]
    """From the fault to the end of each."""
    said: str
    """The line that tells the user."""
    went_on: str = ""
    """How the same command ended afterwards."""
    held: bool = False


class Faults:
    """Every fault, done in folders of its own."""

    def __init__(self, home: Path):
        self.home, self.found, self.left_out = home, [], []
        self.recipe = home / "recipe.py"
        self.recipe.write_text(RECIPE.format(steps=STEPS))
        self._straight: dict[int, dict[str, object]] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Faults":
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def runs(self, name: str, number: int = 1) -> Runs:
        """Of a fresh folder."""
        made = Runs(self.home, self.recipe, self.home / name, number)
        self._open.callback(made.close)
        return made

    def straight(self, number: int) -> dict[str, object]:
        """The outcome of a run that nothing happens to."""
        if number not in self._straight:
            runs = self.runs(f"straight_{number}", number)
            runs.start()
            statuses, _ = runs.ends()
            if statuses != [0] * number:
                raise SystemExit(runs.said("error"))
            self._straight[number] = outcome(runs.workdir, STEPS)
        return self._straight[number]

    def tell(
        self,
        fault: str,
        runs: Runs,
        ended: tuple[list[int | None], list[float]],
        statuses: Sequence[object],
        says: str,
        *,
        goes_on: bool = True,
    ) -> None:
        """Write down how `fault` ended, and whether the run goes on from it.

        `statuses`: what each process should end with; "any": but 0, in time. `says`: a
        pattern of the line that tells the user.
        """
        said = runs.said(says) if says else ""
        found = Found(fault, *ended, said)
        found.held = not said.startswith(UNSAID) and all(
            status not in (0, None) if wanted == "any" else status == wanted
            for status, wanted in zip(ended[0], statuses, strict=True)
        )
        if goes_on:
            expected = self.straight(runs.number)
            runs.start()
            again, _ = runs.ends()
            same = again == [0] * runs.number and (
                outcome(runs.workdir, STEPS) == expected
            )
            found.went_on = "to the same end" if same else f"NOT: {runs.said('error')}"
            found.held &= same
        self.found.append(found)
        print(
            f"{'held' if found.held else 'BROKEN'}: {fault}: statuses {ended[0]} after "
            f"{ended[1]} s; {said}; {found.went_on}",
            flush=True,
        )

    def signals(self) -> None:
        """One process is stopped."""
        for number, status, says in (
            (signal.SIGINT, 130, "stopped at step"),
            (signal.SIGTERM, 143, "stopped at step"),
            (signal.SIGKILL, -9, ""),
        ):
            name = signal.Signals(number).name
            runs = self.runs(name)
            runs.start()
            runs.until_step(5)
            runs.send(number)
            self.tell(f"{name} while training", runs, runs.ends(), [status], says)

    def two_processes(self) -> None:
        """One of two is stopped, dies or hangs."""
        for process in range(2):
            runs = self.runs(f"term_{process}", 2)
            runs.start()
            runs.until_step(5)
            runs.send(signal.SIGTERM, process)
            fault = f"two processes: SIGTERM to process {process}"
            self.tell(fault, runs, runs.ends(), [143, 143], "stopped at step")
        for process in range(2):
            runs = self.runs(f"kill_{process}", 2)
            runs.start()
            runs.until_step(5)
            runs.send(signal.SIGKILL, process)
            statuses: list[object] = ["any", "any"]
            statuses[process] = -9
            fault = f"two processes: SIGKILL of process {process}"
            self.tell(fault, runs, runs.ends(), statuses, "")
        for process in range(2):
            runs = self.runs(f"hang_{process}", 2)
            runs.start("--train.watchdog", str(WATCHDOG))
            runs.until_step(5)
            runs.send(signal.SIGSTOP, process)
            began = time.monotonic()
            runs.until(lambda: False)  # the other ends
            took = time.monotonic() - began
            runs.send(signal.SIGKILL, process)  # it is stopped: nothing else ends it
            ended, _ = runs.ends()
            other = [ended[1 - process]], [round(took, 1)]
            fault = (
                f"two processes: process {process} hangs (SIGSTOP), "
                f"--train.watchdog {WATCHDOG}; of the other"
            )
            self.tell(fault, runs, other, ["any"], "Timeout")

    def disks(self) -> None:
        """A disk that is full, or becomes read-only."""
        try:
            with mounted(self.home / "disk", "size=64m"):
                pass
        except OSError as error:
            self.left_out.append(f"full and read-only disks: {error}")
            return
        for name, options, status, says in (
            ("stop", (), 2, "No space left"),
            (
                "continue",
                ("--train.on-save-error", "continue"),
                0,
                "warning: not saved",
            ),
        ):
            with mounted(self.home / "disk", "size=64m") as disk:
                runs = self.runs("disk/run")
                runs.start(*options)
                runs.until_step(5)
                filler = disk / "filler"
                with contextlib.suppress(OSError), filler.open("wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()
                fault = f"the disk is full, train.on_save_error {name}"
                if status == 0:
                    fault += ", and has room again later"
                    runs.until(functools.partial(runs.says, says))
                    filler.unlink()
                ended = runs.ends()
                filler.unlink(missing_ok=True)
                self.tell(fault, runs, ended, [status], says)
        with mounted(self.home / "disk", "size=64m") as disk:
            runs = self._stopped("disk/run")
            mount("remount,ro", disk)
            runs.start()
            ended = runs.ends()
            mount("remount,rw", disk)
            fault = "the disk is read-only where a run is to go on"
            self.tell(fault, runs, ended, [2], "cannot write in")
            mount("remount,ro", disk)
            runs = self.runs("disk/another")
            runs.start()
            fault = "the disk is read-only where a run is to start"
            self.tell(fault, runs, runs.ends(), [2], "cannot write in", goes_on=False)

    def folders(self) -> None:
        """Two writers, and a lock that was left."""
        runs = self.runs("locked")
        runs.start()
        runs.until_step(3)
        runs.send(signal.SIGSTOP)  # it is not to end before the second has looked
        second = Runs(self.home / "second", self.recipe, runs.workdir)
        (self.home / "second").mkdir()
        second.start()
        self.tell(
            "a second `train` in a folder where one trains",
            second,
            second.ends(),
            [2],
            "another process is training in",
            goes_on=False,
        )
        runs.send(signal.SIGKILL)
        fault = "its lock is still there after the first was killed"
        self.tell(fault, runs, runs.ends(), [-9], "")
        runs.start("--prefix.length", "5")
        fault = "the folder holds a run of another recipe"
        self.tell(fault, runs, runs.ends(), [2], "prefix.length: 10", goes_on=False)

    def damage(self) -> None:
        """Files that are not what was written."""

        def flip(file: Path) -> None:
            held = bytearray(file.read_bytes())
            held[len(held) // 2] ^= 1
            file.write_bytes(held)

        def empty(file: Path) -> None:
            file.write_bytes(b"")

        def cut(file: Path) -> None:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

        for what, break_ in (
            ("a bit of the newest checkpoint is flipped", flip),
            ("the newest checkpoint's largest file is cut in half", cut),
            ("the newest checkpoint's largest file is empty", empty),
        ):
            runs = self._stopped(f"damaged_{break_.__name__}")
            break_(largest(steps(runs.workdir)[-1]))
            runs.start()
            self.tell(what, runs, runs.ends(), [0], "warning: .*checkpoint")
        runs = self._stopped("all_damaged")
        for step in steps(runs.workdir):
            flip(largest(step))
        for fault in ("every checkpoint is damaged", "the same, tried again"):
            before = (runs.workdir / "metrics.jsonl").read_text()
            runs.start()
            self.tell(fault, runs, runs.ends(), [2], "error: ", goes_on=False)
            kept = (runs.workdir / "metrics.jsonl").read_text() == before
            self.found[-1].held &= kept
        self.straight(1)
        best = self.home / "damaged_prefix"
        shutil.copytree(self.home / "straight_1" / "best", best)
        flip(best / "adapter_model.safetensors")
        self._command(
            "a bit of a stored prefix is flipped",
            ["generate", "--prefix", str(best), "name : The Mill"],
            "adapter_model.safetensors",
        )

    def numbers(self) -> None:
        """Losses that are not finite."""
        wild = ("--train.method", "full", "--optim.learning-rate", "1e30")
        runs = self.runs("nan")
        runs.start(*wild)
        says = "at step .* the loss is"
        fault = "a loss that is not finite (full fine-tuning at a rate of 1e30)"
        self.tell(fault, runs, runs.ends(), [2], says, goes_on=False)
        runs = self.runs("nan_skipped")
        runs.start(*wild, "--train.on-nonfinite", "skip")
        fault = "the same with train.on_nonfinite skip: ten in a row"
        self.tell(fault, runs, runs.ends(), [2], "it diverged", goes_on=False)

    def _stopped(self, name: str) -> Runs:
        """A run that was stopped in its middle, with several checkpoints."""
        runs = self.runs(name)
        runs.start()
        runs.until_step(8)
        runs.send(signal.SIGTERM)
        statuses, _ = runs.ends()
        if statuses != [143] or len(steps(runs.workdir)) < 2:
            raise SystemExit(f"not stopped in its middle: {runs.said('error')}")
        return runs

    def _command(self, fault: str, words: Sequence[str], says: str) -> None:
        """Another command than `train`, which should refuse."""
        runs = self.runs("none")
        runs.command(*words)
        self.tell(fault, runs, runs.ends(), [2], says, goes_on=False)


def table(found: Sequence[Found]) -> str:
    """A line for each fault, for people."""
    lines = [
        "| fault | ends with | after | what is said | then |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        statuses = ", ".join(map(str, one.statuses))
        seconds = ", ".join(f"{s:g} s" for s in one.seconds)
        said = shortened(one.said, 160).replace("|", r"\|")
        cells = one.fault, statuses, seconds, f"`{said}`" if said else "", one.went_on
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    kinds: dict[str, Callable[[Faults], None]] = {
        "signals": Faults.signals,
        "two": Faults.two_processes,
        "disks": Faults.disks,
        "folders": Faults.folders,
        "damage": Faults.damage,
        "numbers": Faults.numbers,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as home, Faults(Path(home)) as faults:
        for kind in options.only:
            kinds[kind](faults)
        found = [dataclasses.asdict(one) for one in faults.found]
    if (path := vars(options).pop("markdown")) is not None:
        path.write_text(table(faults.found), encoding="utf-8")
    for one in faults.left_out:
        print(f"LEFT OUT: {one}")
    write_report(options, "faults", {"faults": found, "left_out": faults.left_out})
    if not all(one.held for one in faults.found):
        sys.exit(1)


if __name__ == "__main__":
    main()
