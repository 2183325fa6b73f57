"""An inspected prefix to look at: a table with bars, and a picture."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prefix_jax.errors import InputError
from prefix_jax.runs.inspect import Inspection
from prefix_jax.storage.pictures import figure

BAR = 16
"""Characters of a full bar."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int = BAR) -> str:
    """A bar of blocks, full at 1, to an eighth of a character."""
    whole, eighths = divmod(round(min(max(share, 0.0), 1.0) * width * 8), 8)
    return "█" * whole + (_EIGHTHS[eighths] if eighths else "")


def print_inspection(found: Inspection, console: Console | None = None) -> None:
    """Print what is known, then a table of the layers."""
    console = console or Console()
    for name, value in _facts(found):
        console.print(
            f"{name:<11}{value}", highlight=False, markup=False, soft_wrap=True
        )
    console.print()
    if found.layers:
        console.print(_table(found))
    for text in found.texts:
        console.print(f'text: "{text}"', highlight=False, markup=False, soft_wrap=True)


def plot_mass(found: Inspection, path: Path) -> None:
    """A heat map of the attention mass, layers by heads.

    Raises InputError if there is none, because the backbone is missing, or if the file
    cannot be written.
    """
    rows = [layer.mass for layer in found.layers if layer.mass is not None]
    if not rows:
        raise InputError(
            "there is no attention to draw"
            + (
                ": a gated prefix takes no share of the text's"
                if found.metadata.own_softmax
                else f" (backbone: {found.backbone_found})"
            )
        )
    size = (2.5 + 0.4 * len(rows[0]), 1.8 + 0.3 * len(rows))
    try:
        with figure(path, size) as drawn:
            axes = drawn.subplots()
            image = axes.imshow(rows, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
            axes.set(
                xlabel="head",
                ylabel="layer",
                xticks=range(len(rows[0])),
                yticks=range(len(rows)),
            )
            drawn.colorbar(image, label="share of attention paid to the prefix")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot write the picture {path}: {error}; give a file such as "
            "mass.png in a folder that exists"
        ) from None


def _facts(found: Inspection):
    about = found.metadata
    kind = ((about.recipe or {}).get("prefix") or {}).get("kind")
    yield "prefix", f"{found.folder}, written by {found.written_by}"
    if kind:
        yield "trained as", {"mlp": "mlp, stored folded"}.get(kind, kind)
    elif about.kind == "embedding":
        yield "trained as", about.kind
    yield "length", f"{found.length} positions, text {about.position_mode}"
    if about.layer_lengths is not None:
        yield "by layer", " ".join(map(str, about.layer_lengths))
    if about.placement != "prefix":
        yield "place", f"{about.placement}, between source and target"
    if about.own_softmax:
        yield "gates", "folded into the values; the prefix has a softmax of its own"
    if about.obstacle is not None:
        yield "PEFT", f"cannot represent it: {about.obstacle}"
    share = "" if found.share is None else f", {found.share:.2%} of the backbone's"
    yield "size", f"{found.stored_bytes:,} bytes, {found.numbers:,} numbers{share}"
    name, dtype = about.backbone_name or "(not named)", about.backbone_dtype or "type ?"
    yield (
        "backbone",
        f"{name}, {dtype}, fingerprint {about.backbone_fingerprint or '?'}",
    )
    yield "found", found.backbone_found
    yield "task", (about.task or "text to continue") + (", E2E" if about.e2e else "")
    scores = (about.scores or {}).items()
    yield "scores", ", ".join(f"{name} {_number(x)}" for name, x in scores) or "none"


def _number(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return str(value)


def _table(found: Inspection) -> Table:
    measured = any(layer.mass is not None for layer in found.layers)
    table = Table(title="the prefix by layer", title_justify="left")
    table.add_column("layer", justify="right")
    table.add_column("‖key‖", justify="right", no_wrap=True)
    table.add_column("‖value‖", justify="right", no_wrap=True)
    if measured:
        table.add_column("attention", no_wrap=True)
        table.add_column("mean", justify="right")
        table.add_column("most", justify="right", no_wrap=True)
    for number, layer in enumerate(found.layers):
        cells = [
            str(number),
            _norm(layer.key_norm, layer.key_ratio),
            _norm(layer.value_norm, layer.value_ratio),
        ]
        if layer.mass is not None:
            mean = sum(layer.mass) / len(layer.mass)
            most = max(layer.mass)
            head = layer.mass.index(most)
            cells += [bar(mean), f"{mean:.0%}", f"{most:.0%} head {head}"]
        table.add_row(*cells)
    if measured:
        table.caption = (
            "norms: mean length, and how many times that of the text's own; attention: "
            "the share that the text pays to the prefix, mean over tokens and heads, "
            "and the head that pays the most"
        )
    return table


def _norm(norm: float, ratio: float | None) -> str:
    return f"{norm:.2f}" if ratio is None else f"{norm:.2f} ({ratio:.1f}x)"


def show_size(number: int) -> str:
    """Bytes in the largest unit of which there is one."""
    size, units = float(number), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if number else "0"
