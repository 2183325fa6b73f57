"""The chart of `report`'s page: loss by step as SVG, readable without a script.

Colours are classes, `c0` and so on, that the page's style sheet gives for light and
dark. Elements are made by ElementTree, which escapes what they hold.
"""

import dataclasses
import math
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import numpy as np

from prefix_jax.storage.log import moving_average

Points = Sequence[tuple[int, float]]
COLOURS = 6
_MARKS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",  # circle
    "M-3.6,-3.6h7.2v7.2h-7.2z",  # square
    "M0,-5L5,0L0,5L-5,0z",  # diamond
    "M0,-4.8L4.6,3.4H-4.6z",  # triangle
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run's losses."""

    label: str
    train: Points
    """(step, loss)."""
    validation: Points


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high`, drawn from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float | int) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self, number: int) -> list[float]:
        """Round values, about `number` of them."""
        if self.logarithmic:
            powers = range(
                math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
            )
            found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / number
            power = 10.0 ** math.floor(math.log10(rough))
            step = power * min((1, 2, 5, 10), key=lambda d: abs(d * power - rough))
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            found = [round(i * step, 10) for i in range(first, last + 1)]
        return [value for value in found if self.low <= value <= self.high]


def loss_chart(curves: Sequence[Curve], width: int, height: int, name: str) -> str:
    """SVG of training loss (thin; its moving average thick) and validation (marks).

    `name`: of this chart among the page's, for its ids. A wide chart has the labels of
    the runs at the ends of their lines, too. Losses that span more than a factor of 10
    are drawn on a logarithmic axis. "" where there is nothing to draw.
    """
    points = [point for one in curves for point in (*one.train, *one.validation)]
    if not points:
        return ""
    labelled = width >= 600
    losses = [loss for _, loss in points]
    low, high = min(losses), max(losses)
    logarithmic = low > 0 and high > 10 * low
    if logarithmic:
        low, high = low / 1.1, high * 1.1
    else:
        room = 0.05 * (high - low) or max(0.5, 0.05 * abs(high))
        low, high = low - room, high + room
    last = float(max(max(step for step, _ in points), 1))
    right = 8 + (8 * max(len(_short(one.label)) for one in curves) if labelled else 8)
    x = _Axis(0.0, last, 52.0, float(width - right))
    y = _Axis(low, high, float(height - 44), 10.0, logarithmic)

    svg = ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "class": f"chart {name}",
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
        },
    )
    _add(svg, "title", "Loss by optimizer step", id=f"{name}-title")
    _add(svg, "desc", _described(curves), id=f"{name}-desc")
    _axes(svg, x, y, width, height)
    for number, curve in enumerate(curves):
        _curve(svg, curve, number, x, y)
    if labelled:
        _labels(svg, curves, x, y)
    return ET.tostring(svg, encoding="unicode")


def mark(number: int) -> str:
    """SVG of the mark of a run, for the legend."""
    svg = ET.Element(
        "svg", {"viewBox": "-14 -7 28 14", "class": "mark", "aria-hidden": "true"}
    )
    group = _add(svg, "g", **{"class": _colour(number)})
    _add(group, "line", x1="-14", x2="14", y1="0", y2="0", **{"class": "smooth"})
    _add(group, "path", d=_MARKS[number % len(_MARKS)], **{"class": "point"})
    return ET.tostring(svg, encoding="unicode")


def _axes(svg: ET.Element, x: _Axis, y: _Axis, width: int, height: int) -> None:
    group = _add(svg, "g", **{"class": "axes"})
    for value in y.ticks(5):
        at = str(y(value))
        _add(group, "line", x1=str(x.start), x2=str(x.stop), y1=at, y2=at)
        text = {"x": str(x.start - 6), "y": str(y(value) + 4), "text-anchor": "end"}
        _add(group, "text", f"{value:g}", **text)
    for value in x.ticks(max(round(width / 130), 3)):
        at = {"x": str(x(value)), "y": str(y.start + 18), "text-anchor": "middle"}
        _add(group, "text", f"{value:,g}", **at)
    middle = {"x": str((x.start + x.stop) / 2), "text-anchor": "middle"}
    _add(group, "text", "optimizer step", y=str(height - 6), **middle)
    what = "loss (nats per target token" + (", log scale)" if y.logarithmic else ")")
    turned = {"transform": f"translate(12 {(y.start + y.stop) / 2}) rotate(-90)"}
    _add(group, "text", what, **turned, **{"text-anchor": "middle"})


def _curve(svg: ET.Element, curve: Curve, number: int, x: _Axis, y: _Axis) -> None:
    group = _add(svg, "g", **{"class": _colour(number)})
    _add(group, "title", curve.label)
    if curve.train:
        _line(group, curve.train, "raw", x, y)
        _line(group, _smooth(curve.train), "smooth", x, y)
    if curve.validation:
        _line(group, curve.validation, "validation", x, y)
    for step, loss in curve.validation:
        place = {"transform": f"translate({x(step)} {y(loss)})", "class": "point"}
        point = _add(group, "path", d=_MARKS[number % len(_MARKS)], **place)
        _add(point, "title", f"{curve.label}, step {step:,}: validation {loss:.4f}")


def _line(parent: ET.Element, points: Points, kind: str, x: _Axis, y: _Axis) -> None:
    drawn = " ".join(f"{x(step)},{y(loss)}" for step, loss in points)
    _add(parent, "polyline", points=drawn, **{"class": kind})


def _smooth(points: Points) -> Points:
    window = math.isqrt(len(points)) | 1  # odd, so that it is centred
    means = moving_average(np.array([loss for _, loss in points]), window)
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def _labels(svg: ET.Element, curves: Sequence[Curve], x: _Axis, y: _Axis) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    ends = []
    for number, curve in enumerate(curves):
        points = curve.validation or curve.train
        if points:
            ends.append((y(points[-1][1]), x(points[-1][0]), number))
    bottom = y.stop
    placed = []
    for height, end, number in sorted(ends):
        bottom = max(height + 4, bottom + 15)
        placed.append((bottom, end, number))
    over = max(0.0, placed[-1][0] - y.start) if placed else 0.0
    for height, end, number in placed:
        at = {"x": str(end + 9), "y": str(round(height - over, 1))}
        label = _short(curves[number].label)
        _add(svg, "text", label, **at, **{"class": f"label {_colour(number)}"})


def _described(curves: Sequence[Curve]) -> str:
    said = []
    for curve in curves:
        points, what = curve.validation, "validation"
        if not points:
            points, what = curve.train, "training"
        if points:
            (first, start), (last, end) = points[0], points[-1]
            said.append(
                f"{curve.label}: {what} loss {start:.3f} at step {first:,}, "
                f"{end:.3f} at step {last:,}"
            )
    return "; ".join(said) + "."


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"


def _colour(number: int) -> str:
    return f"c{number % COLOURS}"


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: str):
    element = ET.SubElement(parent, tag, attributes)
    element.text = text or None
    return element
