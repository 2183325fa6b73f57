"""How fast is prefix-tuning, beside PEFT and beside the best PyTorch that we can write?

Some of E2E's training examples through a GPT-2 of random weights, a flat prefix, AdamW.
Each side is a process of its own, and they take turns, the others waiting; in a round
each trains on all of the examples once:

    ours       `make_train_step` on packed rows
    peft       PEFT as its users run it: batches padded to their longest row, eager
    peft_kept  the same, but freed memory stays with the process, as with ours (see
               prefix_jax/process.py), which no user of PEFT does
    torch      transformers' GPT-2 with our own prefix: the same packed rows and masks,
               SDPA, logits for target tokens only, fused AdamW, freed memory kept
    torch_compiled, torch_flex
               the same by torch.compile, and with flex attention by it, which knows
               which keys of a packed row are not seen: for GPUs

    python benchmarks/train_step.py --e2e FOLDER --tokenizer FOLDER --out FILE.json

With --length the texts are random and of that length, and every token carries loss.

Examples per second are medians over rounds. The share of the ceiling is the useful
operations of a step (`operations`, shown in the JSON; padding is not useful) over its
time, divided by what the best of a few square matrix products reaches in the same run.
A first step of ours is cold with an empty cache of compiled programs, warm with what
the cold one left there. Batches of ours are made while the device runs the step before:
it waits for none as long as one takes less than a step (`input`).
"""

import dataclasses
import functools
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np
from operations import ceiling, operations
from reports import (
    add_texts,
    gpt2_shape,
    make_parser,
    positive,
    run,
    take_turns,
    write_report,
)
from texts import rows_of

from prefix_jax.data.tokens import Row
from prefix_jax.errors import InputError
from prefix_jax.process import keep_freed_memory

SIDES = ("ours", "peft", "peft_kept", "torch", "torch_compiled", "torch_flex")


def work(name: str, rows: list[Row], options, cache: str, pipe: Connection) -> None:
    """A side's process: takes numbers of examples, sends how many it has trained on.

    First it sends the seconds of its first step; for None, the last, its peak memory.
    """
    if name != "peft":
        keep_freed_memory()
    # Jax, imported by now, no longer reads its environment variable.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        if name == "ours":
            import train_ours as module

            step = module.ours(rows, options)
        else:
            import train_torch as module

            if name.startswith("torch"):
                step = module.as_torch(rows, options, name)
            else:
                step = module.as_peft(rows, options)
    except InputError as error:
        sys.exit(f"{name}: {error}")
    started = time.perf_counter()
    step(1)
    pipe.send(time.perf_counter() - started)
    while (examples := pipe.recv()) is not None:
        pipe.send(step(examples))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    made = getattr(module, "INPUT_SECONDS", [])
    pipe.send((module.peak_bytes() or resident, statistics.median(made or [math.nan])))


@dataclasses.dataclass
class Side:
    """A process that trains."""

    process: BaseProcess
    pipe: Connection
    first: float = math.nan
    """Seconds of the first step: compilation, if there is any."""

    @classmethod
    def start(cls, name: str, rows: list[Row], options, cache: str) -> "Side":
        context = multiprocessing.get_context("spawn")
        pipe, other = context.Pipe()
        arguments = name, rows, options, cache, other
        process = context.Process(target=work, args=arguments, name=name, daemon=True)
        process.start()
        other.close()
        return cls(process, pipe)

    def heard(self) -> bool:
        """Waits until it is ready; False where it has ended instead."""
        if math.isnan(self.first):
            try:
                self.first = self.pipe.recv()
            except EOFError:
                return False
            print(f"{self.process.name}: first step {self.first:.1f} s", flush=True)
        return True

    def run(self, examples: int) -> int:
        """Trains on the next so many examples; how many filled whole batches."""
        self.pipe.send(examples)
        return self.pipe.recv()

    def end(self) -> tuple[int, float]:
        """Bytes of memory at its peak: of the GPU's, or of the process on a CPU.

        And the median seconds that a batch took to make, of ours.
        """
        self.pipe.send(None)
        found = self.pipe.recv()
        self.process.join()
        return found


def main() -> None:
    """The command line."""
    parser = make_parser(str(__doc__), rounds=3)
    add_texts(parser)
    parser.add_argument(
        "--batch-size", type=positive, default=10, help="examples a step"
    )
    parser.add_argument(
        "--pack",
        type=positive,
        default=128,
        help="tokens a packed row, at least those of the longest text; of texts as "
        "short as E2E's, rows of 128 are as full as wider ones, and attend to less",
    )
    parser.add_argument(
        "--length", type=positive, help="of random texts, in E2E's place"
    )
    parser.add_argument(
        "--examples",
        type=positive,
        default=240,
        help="the same for each side and round",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="prepare all sides at once: sooner done on many cores; first steps are "
        "then upper bounds",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="for a line of standard input before the rounds: several runs can prepare "
        "side by side, and take their time one after the other",
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES[:4]))
    parser.set_defaults(prefix_length=5)
    options = parser.parse_args()
    if (options.e2e is None) == (options.length is None):
        parser.error("give --e2e FOLDER or --length TOKENS")
    if options.length:
        options.pack = options.length
    others = ("torch", "peft") if set(options.sides) - {"ours"} else ()
    if missing := [name for name in others if find_spec(name) is None]:
        parser.error(
            f"the other sides need {' and '.join(missing)}: install "
            "'prefix_jax[test]' on Python 3.11, or give --sides ours"
        )
    # Each process takes the GPU memory that it needs, and leaves the others theirs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    rows = rows_of(options)
    longest = max(len(row.tokens) for row in rows)
    if longest > options.pack:
        parser.error(
            f"--pack {options.pack}: the longest text has {longest} tokens; give as "
            "many or more"
        )
    done = {name: [] for name in options.sides}
    with tempfile.TemporaryDirectory() as cache:
        sides = {}
        for name in options.sides:
            sides[name] = Side.start(name, rows, options, cache)
            if not options.together:
                sides[name].heard()
        first, failed = {}, []
        for name, side in list(sides.items()):
            if side.heard():
                first[name] = side.first
            else:
                failed.append(name)
                del sides[name]
        if failed:
            print(f"failed and left out, see above: {', '.join(failed)}", flush=True)
        if not sides:
            sys.exit("no side is left; nothing was measured")
        if "ours" in sides:
            kept = set(Path(cache).glob("*-cache"))
            again = Side.start("ours", rows, options, cache)
            heard = again.heard()
            if heard:
                again.end()
            # Unless all programs were found there, it was no warm start.
            if heard and kept and kept == set(Path(cache).glob("*-cache")):
                first["ours, warm"] = again.first

    if options.wait:
        print("ready; press Enter when the machine is quiet", flush=True)
        sys.stdin.readline()

    def turn(name: str) -> None:
        done[name].append(sides[name].run(len(rows)))

    for side in sides.values():
        side.run(1)
    turns = {name: functools.partial(turn, name) for name in sides}
    took = take_turns(turns, options.rounds)
    limit = ceiling(options.dtype)
    ends = {name: side.end() for name, side in sides.items()}
    peak = {name: bytes_ for name, (bytes_, _) in ends.items()}

    rates = {
        name: [n / s for n, s in zip(done[name], took[name], strict=True)]
        for name in sides
    }
    lengths = np.array([len(row.tokens) for row in rows])
    targets = float(np.mean([row.loss_mask.sum() for row in rows]))
    shape = gpt2_shape(options.shape)
    count = operations(shape, lengths, targets, options.prefix_length)
    median = {name: statistics.median(found) for name, found in rates.items()}
    share = {name: rate * count["in all"] / limit for name, rate in median.items()}
    for name, rate in median.items():
        print(
            f"{name}: {rate:.2f} examples/s, {rate * count['tokens']:.0f} tokens/s, "
            f"{share[name]:.0%} of the ceiling ({limit / 1e9:.0f} Gflop/s); first step "
            f"{first[name]:.1f} s; peak {peak[name] / 1e9:.1f} GB; ours / {name} "
            f"{median.get('ours', rate) / rate:.2f}"
        )
    waiting = {}
    if "ours" in sides:
        step = options.batch_size / median["ours"]
        made = ends["ours"][1]
        waiting = {"seconds_of_a_batch": made, "share_of_a_step": made / step}
        print(f"ours: a batch is made in {made / step:.2%} of a step, while one runs")
    results = {
        "examples_per_second": median,
        "input": waiting,
        "tokens_per_second": {n: rate * count["tokens"] for n, rate in median.items()},
        "rounds": rates,
        "first_step_seconds": first,
        "peak_bytes": peak,
        "share_of_ceiling": share,
        "ceiling_flops": limit,
        "operations_per_example": count,
        "threads": os.cpu_count(),
    }
    write_report(options, "train_step", results, ("transformers", *others))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
