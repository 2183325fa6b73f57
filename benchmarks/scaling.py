"""How does a training step's cost grow with batch, text, prefix, layers and devices?

One setting at a time is varied around a step of `--batch` rows of `--length` tokens:
seconds (medians; the points take turns), those of all cores together, tokens per
second, and the memory that the compiler's analysis gives, beside what the device
reports where it does. Then the largest batch that fits into `--memory`, with and
without rematerialised layers and the chunked loss, searched for over that analysis:
nothing is run until it crashes.

    python benchmarks/scaling.py --out FILE.json --plot FILE.png

On a CPU the devices are simulated: they share the same cores, so a whole batch split
over more of them shows what splitting costs, never a speed-up.
"""

import argparse
import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
from reports import QUIET, make_parser, positive, run, write_report
from steps import Work, add_work, asked_work, measure, memory_needed

from prefix_jax.process import keep_freed_memory

AXES = {
    "batch": (1, 4, 8, 16),
    "length": (32, 64, 128, 256),
    "prefix": (1, 10, 50, 200),
    "layers": (2, 4, 8, 12),
    "devices": (1, 2, 4, 8),
}
"""What is varied, and over which values unless others are asked for."""

USUAL_MEMORY = 16.0
"""GB of a TPU v5e chip and of many a GPU, where a device does not tell its own."""

SIMULATED = (
    "Devices are simulated on the same cores: the seconds show what splitting a batch "
    "costs, not a speed-up."
)


def varied(work: Work, axis: str, value: int) -> Work:
    """The same step with another value of what the axis is named after."""
    if axis == "layers":
        shape = dataclasses.replace(work.shape, n_layer=value)
        return dataclasses.replace(work, shape=shape)
    return dataclasses.replace(work, **{axis: value})


def measure_axes(
    axes: Sequence[str], options: argparse.Namespace
) -> dict[str, list[dict]]:
    """Of each axis, a row for each of its values; one that axes share is run once."""
    work = asked_work(options)
    works = {
        axis: {value: varied(work, axis, value) for value in values_of(axis, options)}
        for axis in axes
    }
    names: dict[Work, str] = {}
    for axis, points in works.items():
        for value, point in points.items():
            names.setdefault(point, f"{axis} {value}")
    found = measure({name: point for point, name in names.items()}, options)
    return {
        axis: [{axis: value, **found[names[p]][1]} for value, p in points.items()]
        for axis, points in works.items()
    }


def values_of(axis: str, options: argparse.Namespace) -> list[int]:
    """What an axis is asked to go through, in order."""
    values = sorted(getattr(options, f"{axis}_values"))
    if axis == "devices":
        values = [value for value in values if value <= len(jax.devices())]
    return values


def measure_devices(options: argparse.Namespace) -> dict[str, list[dict]]:
    """That axis alone, in a process that makes the devices which it needs on a CPU."""
    keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", max(options.devices_values))
    return measure_axes(["devices"], options)


def in_own_process(
    task: Callable[[argparse.Namespace], dict], options: argparse.Namespace
) -> dict:
    """Its result, from a process in which jax has not started yet."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(task, options).result()


def line(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float]:
    """The straight line nearest to the points: is growth linear?

    Distances are shares of the points' own values; `off` is the largest.
    """
    slope, start = np.polyfit(xs, ys, 1, w=1 / np.asarray(ys))
    off = np.abs((start + slope * np.asarray(xs)) / np.asarray(ys) - 1).max()
    return {"at_zero": float(start), "each": float(slope), "off": float(off)}


def growth(axis: str, rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Lines through an axis' seconds and through its bytes."""
    xs = [row[axis] for row in rows]
    found = {
        name: line(xs, [row[name] for row in rows])
        for name in ("seconds", "cpu_seconds")
    }
    return {**found, "bytes": line(xs, [row["memory"]["total"] for row in rows])}


def largest_batch(work: Work, limit: float) -> tuple[int, int]:
    """The most rows whose step needs at most `limit` bytes, and the bytes it needs.

    0 rows: not even one fits. A search between what fits and what does not, which
    tries where a line through the last two points meets the limit: bytes grow nearly
    so, and halving would compile three times as often.
    """
    fits, too_many, batch = 0, None, 1
    needed = {0: 0.0}
    while too_many is None or too_many - fits > 1:
        needed[batch] = _total(dataclasses.replace(work, batch=batch))
        if needed[batch] <= limit:
            fits = batch
        else:
            too_many = batch
        (x0, y0), (x1, y1) = list(needed.items())[-2:]
        if y0 < y1 < float("inf"):
            batch = int(x0 + (limit - y0) * (x1 - x0) / (y1 - y0))
        else:
            batch = 2 * fits if too_many is None else (fits + too_many) // 2
        batch = max(batch, fits + 1)
        if too_many is not None:
            batch = min(batch, too_many - 1)
    return fits, int(needed[fits])


def _total(work: Work) -> float:
    """Bytes that a step needs; infinite where the compiler refuses it, as for TPUs."""
    try:
        return memory_needed(work)["total"]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return float("inf")


def fit_memory(options: argparse.Namespace) -> dict[str, object]:
    """The largest batch for each way to save memory, and none."""
    told = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    gigabytes = options.memory or (told / 1e9 if told else USUAL_MEMORY)
    rows = []
    for remat in (False, True):
        for chunked in (False, True):
            work = dataclasses.replace(
                asked_work(options),
                length=options.fit_length,
                remat=remat,
                chunked=chunked,
                # As on TPUs and GPUs: XLA's CPU compiler puts all the recomputing of
                # unrolled layers first, which undoes the saving.
                unroll=False,
            )
            batch, needed = largest_batch(work, gigabytes * 1e9)
            rows.append(
                {"remat": remat, "chunked": chunked, "batch": batch, "bytes": needed}
            )
            print(
                f"{'remat' if remat else 'no remat'}, "
                f"{'chunked' if chunked else 'whole'} loss: "
                + (f"{batch:,} rows, {needed / 1e9:.3g} GB" if batch else "none fits"),
                flush=True,
            )
    whose = "asked for" if options.memory else "the device's" if told else "assumed"
    length = options.fit_length
    return {"gigabytes": gigabytes, "whose": whose, "length": length, "rows": rows}


def main() -> None:
    """The command line."""
    keep_freed_memory()
    parser = make_parser(str(__doc__), rounds=3)
    add_work(parser)
    for axis, values in AXES.items():
        parser.add_argument(
            f"--{axis}-values", type=positive, nargs="+", default=values, metavar="N"
        )
    parser.add_argument(
        "--axes", nargs="*", choices=AXES, default=list(AXES), help="which to vary"
    )
    parser.add_argument("--memory", type=float, help="GB to fit; default: the device's")
    parser.add_argument(
        "--fit-length", type=int, default=256, help="tokens of a row there; 0: skip it"
    )
    options = parser.parse_args()
    if options.fit_length < 0:
        parser.error(f"--fit-length {options.fit_length}; expected tokens, or 0")
    if options.memory is not None and options.memory <= 0:
        parser.error(f"--memory {options.memory}; expected GB above 0")
    if not options.axes and not options.fit_length:
        parser.error("--axes is empty and --fit-length 0, which leaves nothing to do")
    for axis in options.axes:
        for value in getattr(options, f"{axis}_values"):
            varied(asked_work(options), axis, value)  # which refuses what cannot be
            if axis == "devices" and options.batch % value:
                parser.error(
                    f"--batch {options.batch} cannot be split over {value} devices; "
                    "give a multiple, or other --devices-values"
                )

    axes: dict[str, list[dict]] = {}
    # First: on a GPU, a second process finds no memory once this one has started.
    if "devices" in options.axes:
        axes |= in_own_process(measure_devices, options)
    axes |= measure_axes([axis for axis in options.axes if axis != "devices"], options)
    lines = {axis: growth(axis, axes[axis]) for axis in axes if axis != "devices"}
    for axis, found in lines.items():
        for what, fit in found.items():
            # Through two points any line goes.
            off = f", off by {fit['off']:.0%} at most" if len(axes[axis]) > 2 else ""
            print(
                f"{what} by {axis}: {fit['at_zero']:.3g} + {fit['each']:.3g} each{off}"
            )
    notes = [QUIET]
    if jax.default_backend() == "cpu":
        notes.append(SIMULATED)
    results: dict[str, object] = {"notes": notes, "axes": axes, "lines": lines}
    if options.fit_length:
        results["largest_batch"] = fit_memory(options)
    write_report(options, "scaling", results)


if __name__ == "__main__":
    run(main)
