"""Pictures of what the benchmarks wrote.

python benchmarks/plots.py FILE.json [--out FILE.png]
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefix_jax.storage.pictures import COLOURS, figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = {
    "batch": "rows of a step",
    "length": "tokens of a row",
    "prefix": "positions of the prefix",
    "layers": "layers",
    "devices": "devices that share a step",
}


def bars(
    axes: "Axes", values: Mapping[str, float], title: str, show: str = "{:.3g}"
) -> None:
    """A bar for each label, its value at its end."""
    plain(axes)
    axes.grid(visible=False, axis="y")
    colours = list(itertools.islice(itertools.cycle(COLOURS), len(values)))
    drawn = axes.barh(list(values), list(values.values()), color=colours, height=0.6)
    axes.bar_label(drawn, [show.format(value) for value in values.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(title, loc="left", fontsize=10)


def lines(
    axes: "Axes",
    xs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
) -> None:
    """A line for each label over the same points, both axes from zero."""
    plain(axes)
    for colour, (label, ys) in zip(COLOURS, series.items(), strict=False):
        axes.plot(xs, ys, "o-", color=colour, markeredgecolor="white", label=label)
    axes.set_xlabel(x_label)
    axes.set_xlim(left=0)
    # A line that lies flat at the top would be cut by the frame.
    axes.set_ylim(0, 1.1 * max(max(ys) for ys in series.values()))
    room = xs[-1] / 18
    apart = [x for x, y in itertools.pairwise(xs) if x > room and y - x > 2 * room]
    axes.set_xticks([0, *apart, xs[-1]])
    axes.set_title(title, loc="left", fontsize=10)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)


def draw_scaling(report: dict, path: Path) -> None:
    """Seconds above memory for each axis, and the largest batches."""
    axes, fit = report["axes"], report.get("largest_batch")
    columns = len(axes) + (fit is not None)
    with figure(path, (3.1 * columns, 6.0)) as drawn:
        grid = drawn.add_gridspec(2, columns)
        drawn.suptitle(f"A training step of a prefix: {where(report)}")
        for number, (axis, rows) in enumerate(axes.items()):
            xs = [row[axis] for row in rows]
            above, below = (drawn.add_subplot(grid[i, number]) for i in (0, 1))
            seconds = {"by the clock": [row["seconds"] for row in rows]}
            if on_cpus(report):
                seconds["of all cores"] = [row["cpu_seconds"] for row in rows]
            lines(above, xs, seconds, "seconds per step", UNITS[axis])
            memory = {
                name: [row["memory"][part] / 1e9 for row in rows]
                for name, part in (("in all", "total"), ("temporary", "temporary"))
            }
            each = " of each device" if axis == "devices" else ""
            lines(below, xs, memory, f"GB{each}", UNITS[axis])
        if fit is not None:
            last = drawn.add_subplot(grid[:, -1])
            names = {
                (False, False): "neither",
                (False, True): "chunked loss",
                (True, False): "remat",
                (True, True): "both",
            }
            found = {
                names[row["remat"], row["chunked"]]: row["batch"] for row in fit["rows"]
            }
            title = f"rows of {fit['length']} tokens\nthat fit {fit['gigabytes']:g} GB"
            bars(last, found, title, "{:.0f}")


def draw_methods(report: dict, path: Path) -> None:
    """A panel for each cost, a bar for each method."""
    rows = report["methods"]
    clock, title = "seconds", "seconds per step"
    if on_cpus(report):  # less disturbed by other programs
        clock, title = "cpu_seconds", "seconds of all cores, per step"
    panels = {
        title: {m: row[clock] for m, row in rows.items()},
        "Gflop of a step, counted": {m: r["operations"] / 1e9 for m, r in rows.items()},
        "GB of memory, in all": {
            m: r["memory"]["total"] / 1e9 for m, r in rows.items()
        },
        "MB of optimizer state": {
            m: row["optimizer_bytes"] / 1e6 for m, row in rows.items()
        },
        "million numbers trained": {m: row["trained"] / 1e6 for m, row in rows.items()},
        "MB stored for a task": {
            m: row["stored_bytes"] / 1e6 for m, row in rows.items()
        },
    }
    with figure(path, (10.0, 4.5)) as drawn:
        drawn.suptitle(f"Prefix, top two layers and full fine-tuning: {where(report)}")
        for axes, (title, values) in zip(
            drawn.subplots(2, 3).flat, panels.items(), strict=True
        ):
            bars(axes, values, title)


def draw_int8(report: dict, path: Path) -> None:
    """A panel for each cost, a bar for each kind of number."""
    panels = {
        "MB of the backbone": ("backbone_bytes", 1e6),
        "GB of a training step": ("step_bytes", 1e9),
        "seconds of a training step": ("seconds_per_step", 1),
        "seconds to write a text": ("seconds_to_write_1", 1),
        "seconds to write 32": ("seconds_to_write_32", 1),
        "dev loss, nats": ("dev_loss", 1),
    }
    with figure(path, (10.0, 3.6)) as drawn:
        devices = " ".join(sorted(set(report["devices"])))
        drawn.suptitle(f"A frozen {report['settings']['backbone']}: {devices}")
        for axes, (title, (name, unit)) in zip(
            drawn.subplots(2, 3).flat, panels.items(), strict=True
        ):
            values = {side: row[name] / unit for side, row in report["sides"].items()}
            bars(axes, values, title)


def draw_train_step(report: dict, path: Path) -> None:
    """Examples per second of each side."""
    with figure(path, (7.0, 2.6)) as drawn:
        drawn.suptitle(f"Training a prefix: {where(report)}")
        bars(drawn.subplots(), report["examples_per_second"], "examples per second")


def draw_decode(report: dict, path: Path) -> None:
    """Sequences per second of both sides, and with more prefixes in a batch."""
    panels = {
        f"{name}, sequences per second": report[name]["sequences_per_second"]
        for name in ("greedy", "beam")
        if name in report
    }
    if "prefixes" in report:
        panels["greedy, by prefixes in a batch"] = {
            number: row["sequences_per_second"]
            for number, row in report["prefixes"].items()
        }
    with figure(path, (3.6 * len(panels), 2.8)) as drawn:
        drawn.suptitle(f"Writing with a prefix: {where(report)}")
        many = drawn.subplots(1, len(panels), squeeze=False).flat
        for axes, (title, values) in zip(many, panels.items(), strict=True):
            bars(axes, values, title)


def draw_learning(report: dict, path: Path) -> None:
    """Both losses by step; theirs dashed, over ours."""
    losses = report["losses"]
    with figure(path, (6.5, 3.2)) as drawn:
        drawn.suptitle(f"One prefix, trained here and by PEFT: {where(report)}")
        axes = drawn.subplots()
        plain(axes)
        steps = range(1, len(losses["ours"]) + 1)
        axes.plot(steps, losses["ours"], color=COLOURS[0], linewidth=3, label="ours")
        axes.plot(steps, losses["peft"], "--", color=COLOURS[1], label="PEFT")
        axes.set_xlabel("step")
        title = "training loss before the step, nats per target token"
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8)


def draw_search(report: dict, path: Path) -> None:
    """Validation loss by step of the runs that have a label, the best first.

    The first steps would hide the rest, so the picture begins after them.
    """
    shown = [run for run in report["runs"] if "label" in run]
    with figure(path, (6.5, 4.0)) as drawn:
        drawn.suptitle(f"500 examples of E2E: {where(report)}")
        axes = drawn.subplots()
        plain(axes)
        for colour, run in zip(COLOURS, shown, strict=False):
            steps, losses = zip(*run["validation"][1:], strict=True)
            axes.plot(steps, losses, "o-", color=colour, label=run["label"])
        axes.set_xlabel("step")
        axes.set_ylim(top=2.0)
        title = "validation loss, nats per target token"
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8)


def where(report: dict) -> str:
    """The backbone and the devices, in a few words."""
    settings, devices = report["settings"], sorted(set(report["devices"]))
    return f"{settings['shape']}, {settings['dtype']}, {' '.join(devices)}"


def on_cpus(report: dict) -> bool:
    """Whether the devices are the cores themselves."""
    return set(report["devices"]) == {"cpu"}


DRAW: dict[str, Callable[[dict, Path], None]] = {
    "scaling": draw_scaling,
    "methods": draw_methods,
    "train_step": draw_train_step,
    "decode": draw_decode,
    "learning": draw_learning,
    "search": draw_search,
    "int8": draw_int8,
}


def draw(report: dict, path: Path) -> None:
    """The picture of one benchmark's report."""
    DRAW[report["benchmark"]](report, path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what a benchmark wrote")
    parser.add_argument("--out", type=Path, help="default: beside it, as .png")
    options = parser.parse_args()
    picture = options.out or options.file.with_suffix(".png")
    try:
        draw(json.loads(options.file.read_text(encoding="utf-8")), picture)
    except (OSError, ValueError, TypeError, KeyError) as error:
        kinds = ", ".join(DRAW)
        sys.exit(f"error: {options.file}: {error!r}; expected what {kinds} wrote")
    print(picture)


if __name__ == "__main__":
    main()
