"""What every benchmark does: common options, turns, a JSON that says where it ran."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import jax
from plots import draw

import prefix_jax as pj
from prefix_jax.config import BackboneConfig, Dtype
from prefix_jax.mesh import make_mesh
from prefix_jax.model.gpt2_config import RELEASED
from prefix_jax.runs.prepare import how_to_load
from prefix_jax.runs.shapes import backbone_config

QUIET = (
    "Seconds are upper bounds unless nothing else ran on the machine; cpu_seconds, of "
    "all cores together, hardly depend on that."
)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number >= 1")
    return int(text)


def new_file(text: str) -> Path:
    """A file that can be written when all has been measured, for argparse."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; expected a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder; make it first")
    return path


def run(main: Callable[[], None]) -> None:
    """The command line; what the user can mend is said in a line, with status 2."""
    try:
        main()
    except pj.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def make_parser(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """A command line with the options that all have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("tiny", *RELEASED), default="gpt2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prefix-length", type=positive, default=10)
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help="turns of each side"
    )
    parser.add_argument("--out", type=new_file, help="where the JSON goes")
    parser.add_argument("--plot", type=new_file, help="where a picture of it goes")
    return parser


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Options for E2E's texts."""
    parser.add_argument("--e2e", type=Path, help="folder of the official CSVs")
    parser.add_argument("--tokenizer", default="tiny", help="name or folder")


def gpt2_shape(name: str) -> pj.GPT2Config:
    """The shape of that name; these benchmarks count GPT-2's operations."""
    shape = backbone_config(name)
    if not isinstance(shape, pj.GPT2Config):
        raise pj.InputError(f"{name} is a {shape.architecture}; expected a GPT-2")
    return shape


def random_gpt2(shape: str, dtype: Dtype) -> pj.GPT2:
    """Random weights of a shape, stored in `dtype`, as the platform runs it best."""
    how = how_to_load(BackboneConfig(), make_mesh())
    how["dtype"] = dtype

    @jax.jit
    def make(key):
        backbone = pj.GPT2(gpt2_shape(shape), key=key, **how)
        return jax.tree.map(lambda x: x.astype(dtype), backbone)

    return make(jax.random.key(0))


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call; the sides alternate, so what slows one slows them all."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            took[name].append(time.perf_counter() - started)
            print(f"round {number}: {name} {took[name][-1]:.2f} s", flush=True)
    return took


def write_report(
    options: argparse.Namespace,
    benchmark: str,
    results: Mapping[str, object],
    packages: Sequence[str] = (),
) -> None:
    """Settings, machine, versions (of `packages` too) and results, as asked."""
    names = ("jax", "jaxlib", *packages)
    report = {
        "benchmark": benchmark,
        "settings": _settings(options),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "devices": [device.device_kind for device in jax.devices()],
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in names},
        },
        **results,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if getattr(options, "plot", None):
        draw(report, options.plot)


def _settings(options: argparse.Namespace) -> dict[str, object]:
    """The options without the places of this machine: of a folder its name only."""
    given = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    for place in ("out", "plot"):
        given.pop(place, None)
    if "tokenizer" in given:
        given["tokenizer"] = Path(given["tokenizer"]).name
    return given


def _processor() -> str:
    """The CPU's name, which Linux tells in a file only."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line for line in text.splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()
