"""Is every damage to what is stored found, or without effect?

A prefix of `tiny` and its optimizer are trained for a few steps and stored as a run
stores them. Then, each time in a fresh copy, one bit of one file is flipped or the file
is cut short, at a random place of a random file of the newest checkpoint or of the
prefix (`best`), and what is left is loaded.

    python benchmarks/damage.py --times 100 --out FILE.json

detected: refused, or the step before was used, each with the file or array named.
harmless: what was loaded has the bits of what was saved. Anything else is wrong, and
makes the status 1.
"""

import argparse
import random
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
from reports import write_report

import prefix_jax as pj
from prefix_jax.model.kv import KV
from prefix_jax.storage.checkpoint import Checkpoints
from prefix_jax.storage.state_arrays import to_arrays

STEPS = (1, 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100, help="of each kind of damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as home:
        results = try_all(Path(home), options.times, random.Random(options.seed))
    write_report(options, "damage", results, ("orbax-checkpoint",))
    if results["wrong"]:
        sys.exit(1)


class Stored:
    """What was saved, and whether a folder still gives it back."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.backbone = pj.load_backbone("tiny")
        prefix = pj.init_prefix(
            self.backbone,
            pj.PrefixConfig(kind="mlp", length=10, hidden=64),
            key=jax.random.key(0),
        )
        trainable, frozen = pj.split(
            {"backbone": self.backbone, "prefix": prefix}, "prefix"
        )
        optimizer = pj.make_optimizer(
            pj.OptimConfig(learning_rate=1e-3), steps=len(STEPS)
        )
        step = pj.make_train_step(optimizer)
        tokens = jnp.arange(1, 33).reshape(2, 16)
        seen = jnp.ones(tokens.shape, bool)
        batch = {"tokens": tokens, "mask": seen, "loss_mask": seen}
        state = pj.init_train_state(trainable, optimizer, jax.random.key(1))
        self.like = jax.tree.map(jnp.copy, state)
        self.states: dict[int, dict[str, np.ndarray]] = {}
        with self._checkpoints(folder) as checkpoints:
            for number in STEPS:
                state, _ = step(state, frozen, batch)
                # Copies: the next step is given the state's own memory.
                self.states[number] = _host(state)
                checkpoints.save(number, state, {"next": number}, {"best": 1.0})
                checkpoints.wait()
        trained = pj.merge(state.trainable, frozen).get("prefix")
        assert trained is not None
        pj.save_prefix(folder / "best", trained, backbone=self.backbone)
        self.prefix = self._prefix(folder)

    def files(self) -> list[Path]:
        """Of the newest checkpoint and of the prefix; empty ones cannot be damaged."""
        parts = (self.folder / "checkpoints" / str(STEPS[-1]), self.folder / "best")
        paths = [path for part in parts for path in sorted(part.rglob("*"))]
        return [path for path in paths if path.is_file() and path.stat().st_size]

    def verdict(self, folder: Path, path: Path) -> str:
        """Of a copy in which the file at `path` was damaged."""
        try:
            if path.parts[0] == "best":
                found = self._prefix(folder)
                return "harmless" if _same(found, self.prefix) else "wrong"
            with self._checkpoints(folder) as checkpoints:
                restored = checkpoints.restore(self.like)
        except pj.InputError:
            return "detected"
        assert restored is not None
        number = int(restored.state.step)
        if not _same(_host(restored.state), self.states[number]):
            return "wrong"
        if restored.data_state != {"next": number} or restored.meta != {"best": 1.0}:
            return "wrong"
        if number == STEPS[-1]:
            return "harmless"
        return "detected" if restored.damaged else "wrong"

    def _checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(folder, backbone_fingerprint="tiny")

    def _prefix(self, folder: Path) -> dict[str, np.ndarray]:
        kv: KV = pj.load_prefix(folder / "best", self.backbone)
        return {"keys": np.asarray(kv.keys), "values": np.asarray(kv.values)}


def _host(state: pj.TrainState) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in to_arrays(state).items()}


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


def try_all(home: Path, times: int, rng: random.Random) -> dict[str, object]:
    """Damage of each kind, so many times; verdicts, and where damage was harmless."""
    stored = Stored(home / "whole")
    verdicts = {"flipped bit": Counter(), "cut short": Counter()}
    harmless: Counter[str] = Counter()
    wrong: list[str] = []
    for kind, counter in verdicts.items():
        for _ in range(times):
            path = rng.choice(stored.files()).relative_to(stored.folder)
            copy = home / "copy"
            shutil.copytree(stored.folder, copy)
            content = bytearray((copy / path).read_bytes())
            place = rng.randrange(len(content))
            if kind == "flipped bit":
                content[place] ^= 1 << rng.randrange(8)
            else:
                content = content[:place]
            (copy / path).write_bytes(content)
            verdict = stored.verdict(copy, path)
            counter[verdict] += 1
            if verdict == "harmless":
                harmless[f"{kind}: {path}"] += 1
            if verdict == "wrong":
                wrong.append(f"{kind} at byte {place} of {path}")
            shutil.rmtree(copy)
        print(f"{kind}: {dict(counter)}", flush=True)
    return {
        **{kind: dict(counter) for kind, counter in verdicts.items()},
        "harmless": dict(harmless.most_common()),
        "wrong": wrong,
    }


if __name__ == "__main__":
    main()
