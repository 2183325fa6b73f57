"""Pictures of runs, in one style."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#555555"


@contextlib.contextmanager
def figure(path: Path, size: tuple[float, float]) -> Iterator["Figure"]:
    """An empty figure of so many inches; on leaving it is written to `path`."""
    # Imported here: it takes a while, and most commands draw nothing.
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The user's own style (a dark one, say) and pyplot's global state stay out of it.
    with matplotlib.style.context("default"):
        drawn = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        drawn.savefig(path, dpi=150, format=path.suffix[1:] or "png")


@contextlib.contextmanager
def chart(path: Path) -> Iterator["Axes"]:
    """Axes to draw lines on; on leaving they are written to `path`."""
    with figure(path, (7.5, 4.5)) as drawn:
        axes = drawn.subplots()
        plain(axes)
        yield axes


def plain(axes: "Axes") -> None:
    """Axes with a light grid behind what is drawn, and no box around it."""
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


class Point(NamedTuple):
    """A mean of several runs."""

    x: float | None
    """None: it is the same for every x."""
    mean: float
    spread: float
    """Drawn to both sides of the mean."""


def plot_points(
    lines: Mapping[str, Sequence[Point]], path: Path, *, x_label: str, y_label: str
) -> Path:
    """Draw one line for each label; `x` is logarithmic where it spans a decade."""
    with chart(path) as axes:
        for colour, (label, points) in zip(
            itertools.cycle(COLOURS), lines.items(), strict=False
        ):
            _draw_level(axes, [p for p in points if p.x is None], colour, label)
            _draw_line(axes, [p for p in points if p.x is not None], colour, label)
        xs = sorted({p.x for points in lines.values() for p in points if p.x})
        if xs and xs[0] > 0 and xs[-1] >= 10 * xs[0]:
            axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if any(lines):
            axes.legend(frameon=False)
    return path


def _draw_line(axes: "Axes", points: Sequence[Point], colour: str, label: str) -> None:
    if points:
        xs, means, spreads = zip(*sorted(points), strict=True)
        axes.errorbar(
            xs,
            means,
            yerr=spreads,
            fmt="o-",
            color=colour,
            linewidth=1.8,
            elinewidth=1,
            capsize=3,
            markeredgecolor="white",
            label=label,
        )


def _draw_level(axes: "Axes", points: Sequence[Point], colour: str, label: str) -> None:
    for _, mean, spread in points:
        axes.axhline(mean, color=colour, linewidth=1.8, linestyle="--", label=label)
        axes.axhspan(mean - spread, mean + spread, color=colour, alpha=0.1)
