"""What does a prefix cost beside full fine-tuning, and beside the top two layers?

The same step on the same made-up rows with each method in turn, in one process:
seconds (medians), those of all cores together, operations by count, memory by the
compiler's analysis, numbers trained, and the bytes that a task leaves on disk, stored
as `train` stores it.

    python benchmarks/methods.py --out FILE.json --plot FILE.png

Of a matrix of n numbers, a token costs 2n operations forward and 2n for the gradient of
its input; only one that is trained costs 2n more for its own. So a prefix would take
two thirds of full fine-tuning's time if such operations were all.
"""

import dataclasses
import tempfile
from pathlib import Path

import jax
from operations import Method
from reports import QUIET, make_parser, run, write_report
from steps import Step, add_work, asked_work, measure

import prefix_jax as pj
from prefix_jax.learning.split import count, merge
from prefix_jax.process import keep_freed_memory
from prefix_jax.runs.result import stored_bytes

METHODS: tuple[Method, ...] = ("prefix", "top2", "full")


def stored(step: Step) -> int:
    """Bytes of the weights that are really written for a task."""
    params = merge(step.state.trainable, step.frozen)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "best"
        if "prefix" in params:
            pj.save_prefix(place, params["prefix"], backbone=params["backbone"])
        else:
            pj.save_backbone(place, params["backbone"])
        return stored_bytes(place)


def size(tree) -> int:
    """Bytes of a tree's arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def compare(options) -> dict[str, dict]:
    """A row for each method."""
    work = asked_work(options)
    works = {name: dataclasses.replace(work, method=name) for name in METHODS}
    return {
        method: {
            **row,
            "optimizer_bytes": size(step.state.opt_state),
            "trained": count(step.state.trainable),
            "stored_bytes": stored(step),
        }
        for method, (step, row) in measure(works, options).items()
    }


def figures(row: dict) -> dict[str, float]:
    """The numbers of a row that methods are compared by."""
    names = "seconds cpu_seconds operations optimizer_bytes trained stored_bytes"
    memory = {name: row["memory"][name] for name in ("temporary", "total")}
    return {**{name: row[name] for name in names.split()}, **memory}


def main() -> None:
    """The command line."""
    keep_freed_memory()
    parser = make_parser(str(__doc__), rounds=7)
    add_work(parser)
    options = parser.parse_args()
    rows = compare(options)
    full = figures(rows["full"])
    ratios = {
        method: {name: value / full[name] for name, value in figures(row).items()}
        for method, row in rows.items()
    }
    for method, row in rows.items():
        print(f"{method}:")
        for name, value in figures(row).items():
            print(f"  {name:<16}{value:>12.4g}{ratios[method][name]:>8.3f} of full")
    results = {"notes": [QUIET], "methods": rows, "relative_to_full": ratios}
    write_report(options, "methods", results)


if __name__ == "__main__":
    run(main)
