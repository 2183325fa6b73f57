"""What does a damaged or hostile file do to each reader? A fuzzer guided by coverage.

    pip install -e '.[fuzz]'
    python benchmarks/fuzz.py webnlg --seconds 60
    python benchmarks/fuzz.py --all --seconds 60 --out benchmarks/results/fuzz/fuzz.json

Each target of `fuzz_targets.py` is one reader and small valid files for it. The files
are mutated, and the reader must give a value or an InputError: any other exception, a
call of more than some seconds and memory beyond a bound are findings. Those that are
told apart by their error and place are kept, with their files, under `--keep`.
"""

import argparse
import importlib
import json
import logging
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzz_targets import Target

SLOW = 5.0
"""Seconds after which a call is a finding."""
HUNG = 60
"""Seconds after which the process is ended, too."""
ROOM = 2 * 2**30
"""Bytes of address space that the reader may take beyond what is taken before."""
LARGEST = 16_384
"""Bytes of the files together: what matters fits into few."""

VALUES: Sequence[object] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "../a", "/etc/passwd", "\ud800", "\x1b[2J"),
    *([], {}, [[]], [{}], {"a": {}}, [None], ["a", 1], "x" * 300),
)
"""What stands for a value of a JSON file."""


def main() -> None:
    options = _options()
    if options.child:
        _fuzz(options.target, options.seconds, options.keep)
        return
    try:
        metadata.version("atheris")
    except metadata.PackageNotFoundError:
        sys.exit("the fuzzer needs atheris: pip install 'prefix-jax[fuzz]'")
    from fuzz_targets import TARGETS

    names = list(TARGETS) if options.all else [options.target]
    if unknown := [name for name in names if name not in TARGETS]:
        sys.exit(f"there is no target {unknown[0]}; expected {', '.join(TARGETS)}")
    found = {name: _run(name, options.seconds, options.keep) for name in names}
    if options.out:
        _write(found, options.out)
    sys.exit(any(one["findings"] for one in found.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", help="a reader")
    parser.add_argument("--all", action="store_true", help="all readers in turn")
    parser.add_argument("--seconds", type=int, default=60, help="of each reader")
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--out", type=Path, help="where the JSON goes; it is added to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.all == bool(options.target):
        parser.error("give a target, or --all")
    return options


def _run(name: str, seconds: int, keep: Path | None) -> dict[str, object]:
    """One target in a process of its own; its numbers and findings."""
    with tempfile.TemporaryDirectory(prefix="prefix_jax_fuzz_") as place:
        kept = Path(keep or place, name).absolute()
        kept.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, name, "--child"]
        command += ["--seconds", str(seconds), "--keep", str(kept)]
        started = time.monotonic()
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", cwd=place
        )
        took = time.monotonic() - started
        log = ended.stderr
        tried = re.findall(r"^#(\d+)\s+\S+\s+cov: (\d+)", log, re.M)
        done = re.findall(r"number_of_executed_units: (\d+)", log)
        found = kept / "findings.jsonl"
        lines = found.read_text().splitlines() if found.exists() else []
        findings = [json.loads(line) for line in lines]
        if ended.returncode:
            said = [line for line in log.splitlines() if "ERROR" in line]
            findings.append({"error": "ended", "place": (said or [log[-300:]])[0]})
        executions = int((done or [tried[-1][0] if tried else 0])[-1])
        covered = int(tried[-1][1]) if tried else 0
    print(
        f"{name}: {executions:,} executions in {took:.0f} s, {covered:,} places "
        f"covered, {len(findings)} findings",
        flush=True,
    )
    for one in findings:
        print(f"  {one['error']} at {one['place']}", flush=True)
    return {
        "seconds": round(took, 1),
        "executions": executions,
        "covered": covered,
        "findings": findings,
    }


def _write(found: dict[str, dict[str, object]], path: Path) -> None:
    """The numbers of several calls together."""
    report = {"benchmark": "fuzz", "targets": {}}
    if path.exists():
        report = json.loads(path.read_text())
    report |= {
        "versions": {
            "python": platform.python_version(),
            **{n: metadata.version(n) for n in ("atheris", "safetensors", "torch")},
        },
        "bounds": {"seconds": SLOW, "bytes": ROOM, "largest_case": LARGEST},
    }
    report["targets"] |= found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def _fuzz(name: str, seconds: int, keep: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    atheris: Any = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["prefix_jax"]):
        from fuzz_targets import MARK, TARGETS

        target = TARGETS[name]
        target.warm()
    warnings.simplefilter("ignore")
    logging.disable()

    corpus = Path(tempfile.mkdtemp(prefix="prefix_jax_corpus_"))
    for number, seed in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(MARK.join(seed))
    folder = Path(tempfile.mkdtemp(prefix="prefix_jax_case_"))
    try_one = _tried(target, folder, keep)
    for seed in target.seeds():  # which are read, and show the memory of a reader
        try_one(MARK.join(seed))
    _limit_memory()

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, MARK, most, seed, atheris.Mutate)

    arguments = [f"-max_total_time={seconds}", f"-timeout={HUNG}", "-rss_limit_mb=8192"]
    arguments += [f"-max_len={LARGEST}", "-print_final_stats=1", "-len_control=0"]
    arguments += [f"-artifact_prefix={keep}/", str(corpus)]
    atheris.Setup([sys.argv[0], *arguments], try_one, custom_mutator=change)
    atheris.Fuzz()


def _tried(target: "Target", folder: Path, keep: Path) -> Callable[[bytes], None]:
    """A call of the reader that notes each kind of finding once."""
    from prefix_jax.errors import InputError

    seen: set[tuple[str, str]] = set()
    notes = (keep / "findings.jsonl").open("w", buffering=1)

    def note(error: str, place: str, said: str, case: bytes) -> None:
        if (error, place) in seen:
            return
        seen.add((error, place))
        number = len(seen)
        (keep / f"{number}.case").write_bytes(case)
        (keep / f"{number}.said").write_text(said, errors="replace")
        notes.write(json.dumps({"error": error, "place": place}) + "\n")

    def call(case: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        target.write(folder, case)
        started = time.monotonic()
        try:
            target.read(folder)
        except InputError:
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            note(type(error).__name__, _place(error), str(error), case)
        if (took := time.monotonic() - started) > SLOW:
            note("slow", "", f"{took:.0f} s", case)

    return call


def _place(error: BaseException) -> str:
    """The last line of this library on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if f"{os.sep}prefix_jax{os.sep}" in one.filename]
    if not own:
        return "outside"
    inside = own[-1].filename.rpartition(f"{os.sep}prefix_jax{os.sep}")[2]
    return f"{inside}:{own[-1].name}"


def _limit_memory() -> None:
    """More becomes a MemoryError, which is a finding, and not the machine's end."""
    status = Path("/proc/self/status").read_text()
    (taken,) = re.findall(r"VmSize:\s+(\d+) kB", status)
    most = int(taken) * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def mutate(
    case: bytes,
    mark: bytes,
    most: int,
    seed: int,
    by_bytes: Callable[[bytes, int], bytes],
) -> bytes:
    """Another case: one file changed, by its values where it is JSON."""
    rng = random.Random(seed)
    parts = case.split(mark)
    number = rng.randrange(len(parts))
    part = parts[number]
    if rng.random() < 0.7:
        changed = _other_json(part, rng) or _other_tensors(part, rng)
    else:
        changed = None
    if changed is None:
        room = max(most - len(case) + len(part), 1)
        changed = by_bytes(part, room)
    parts[number] = changed
    return mark.join(parts)[:most]


def _other_json(part: bytes, rng: random.Random) -> bytes | None:
    """A JSON file, or one with a value a line, with another value somewhere."""
    try:
        return _dumped(_other_value(json.loads(part), rng))
    except (ValueError, RecursionError):
        pass
    lines = part.split(b"\n")
    number = rng.randrange(len(lines))
    try:
        lines[number] = _dumped(_other_value(json.loads(lines[number]), rng))
    except (ValueError, RecursionError):
        return None
    return b"\n".join(lines)


def _other_tensors(part: bytes, rng: random.Random) -> bytes | None:
    """A safetensors file with another header."""
    size = int.from_bytes(part[:8], "little")
    if not 1 < size <= len(part) - 8:
        return None
    changed = _other_json(part[8 : 8 + size], rng)
    if changed is None:
        return None
    length = len(changed) if rng.random() < 0.95 else rng.getrandbits(64)
    return length.to_bytes(8, "little") + changed + part[8 + size :]


def _dumped(value: object) -> bytes:
    if isinstance(value, str) and value == "deep":
        return b"[" * 5000 + b"]" * 5000
    return json.dumps(value).encode()


def _other_value(value: object, rng: random.Random) -> object:
    """One place of it changed."""
    if rng.random() < 0.005:
        return "deep"
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(12):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(["a", "../a", "", name + "x"])] = changed.pop(name)
            case 2:
                changed[name] = changed[rng.choice(list(value))]
            case _:
                changed[name] = _other_value(value[name], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + value[at : at + 1] + value[at:]
            case _:
                return [*value[:at], _other_value(value[at], rng), *value[at + 1 :]]
    if isinstance(value, int) and rng.random() < 0.4:
        return value + rng.choice([-1, 1, -value, 1000, 10**6, 10**9, 10**12])
    return rng.choice(VALUES)


if __name__ == "__main__":
    main()
