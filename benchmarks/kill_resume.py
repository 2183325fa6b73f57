"""Does a run that is killed, again and again, end as if it never had been?

Trains on `tiny`, with dropout and the paper's MLP, once in one go; then again and again
in processes that SIGKILL ends after a random time: in steps, saves and validations. The
same command goes on each time. Where such a run ends, its prefix, MLP, optimizer and
random key must have the bits, and its metrics and samples the lines, of the one run.

    python benchmarks/kill_resume.py --kills 100 --out FILE.json

Status 1 unless all were resumed and equal. Lines are compared without the speed, which
they hold too.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from reports import write_report

from prefix_jax.storage.log import read_metrics

RECIPE = """
from prefix_jax.config import *
config = Config(
    prefix=PrefixConfig(length=10, kind="mlp", hidden=64, dropout=0.1),
    data=DataConfig(source="quickstart", max_length=128, buckets=(96, 112)),
    optim=OptimConfig(learning_rate=1e-3),
    train=TrainConfig(
        steps={steps}, batch_size=4, eval_every=6, eval_batches=4, checkpoint_every=3,
        log_every=1, samples=1,
    ),
    decode=DecodeConfig(max_new_tokens=8),
    mesh=MeshConfig(data=1),
)
"""
STARTED = "numbers trained"
"""Said before the first step, or what is to be restored."""


def start(recipe: Path, workdir: Path) -> subprocess.Popen[str]:
    """The command of a user."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "prefix_jax", "train", str(recipe)),
            *("--workdir", str(workdir)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What it printed up to a line with `text`, or its end."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            break
    return said


def killed_after(process: subprocess.Popen[str], seconds: float) -> tuple[bool, str]:
    """Whether it was killed before it ended by itself, and what it said."""
    said = read_until(process, STARTED)
    try:
        rest, _ = process.communicate(timeout=seconds)
        return False, said + rest
    except subprocess.TimeoutExpired:
        process.kill()
        rest, _ = process.communicate()
        return True, said + rest


def what_it_was_doing(workdir: Path) -> str:
    """Where a kill hit, told by what it left."""
    checkpoints = workdir / "checkpoints"
    names = (
        [path.name for path in checkpoints.glob("*")] if checkpoints.is_dir() else []
    )
    if any("orbax-checkpoint-tmp" in name for name in names):
        return "writing a checkpoint"
    if any(path.name.endswith((".new", ".old")) for path in workdir.glob(".*")):
        return "replacing files"
    return "steps, validations and the rest"


def outcome(workdir: Path, steps: int) -> dict[str, object]:
    """What must be the same."""
    meta = json.loads(
        (workdir / "checkpoints" / str(steps) / "meta" / "metadata").read_text()
    )
    lines = [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in read_metrics(workdir)
    ]
    return {
        # Of the whole state's bits: what is trained, optimizer, step, key.
        "state": {k: v for k, v in meta["digests"].items() if k != "meta"},
        "best": {k: v for k, v in meta["run"].items() if k != "seconds"},
        "metrics": lines,
        "samples": (workdir / "samples.jsonl").read_text(),
        "prefixes": [
            (workdir / name / "adapter_model.safetensors").read_bytes()
            for name in ("best", "last")
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40, help="of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    with TemporaryDirectory() as home:
        results = run(Path(home), options.kills, options.steps, rng)
    write_report(options, "kill_resume", results, ("orbax-checkpoint",))
    if results["equal"] != results["runs"] or results["resumed"] != results["kills"]:
        sys.exit(1)


def run(home: Path, kills: int, steps: int, rng: random.Random) -> dict[str, object]:
    """Kill so many times, over as many runs as it takes; what came of it."""
    recipe = home / "recipe.py"
    recipe.write_text(RECIPE.format(steps=steps))
    for name in ("compiles", "straight"):
        process = start(recipe, home / name)
        read_until(process, STARTED)
        began = time.monotonic()
        rest, _ = process.communicate()
        if process.returncode:
            raise SystemExit(rest)
        seconds = time.monotonic() - began
    expected = outcome(home / "straight", steps)
    assert outcome(home / "compiles", steps) == expected
    done = resumed = runs = equal = 0
    hit: Counter[str] = Counter()
    different: list[str] = []
    while done < kills:
        workdir, before = home / f"run_{runs}", done
        while True:
            # Some kills hit the restoring, and some the end.
            most = rng.uniform(0.0, 0.6 * seconds) if done < kills else 1e6
            process = start(recipe, workdir)
            killed, said = killed_after(process, most)
            if killed:
                done += 1
                hit[what_it_was_doing(workdir)] += 1
            elif process.returncode:
                different.append(said[-500:])
                break
            else:
                break
        runs += 1
        if process.returncode == 0:
            found = outcome(workdir, steps)
            names = [name for name in expected if expected[name] != found[name]]
            resumed += done - before
            equal += not names
            different += names
        print(
            f"{done} kills, {runs} runs, {equal} equal to the straight one", flush=True
        )
    return {
        "kills": done,
        "resumed": resumed,
        "runs": runs,
        "equal": equal,
        "different": different,
        "hit": dict(hit),
        "seconds_of_the_straight_run": seconds,
    }


if __name__ == "__main__":
    main()
