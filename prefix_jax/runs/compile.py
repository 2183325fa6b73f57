"""A recipe's programs, compiled for a TPU slice that need not be there.

The compiler for TPUs (libtpu, the extra `tpu`) works on any machine. It knows the
chips' memory and refuses a program that does not fit it: what is compiled here fits
there. It says nothing about speed or numbers.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from prefix_jax.config import Config
from prefix_jax.data.tokens import text_room
from prefix_jax.decoding.context import unrolled
from prefix_jax.decoding.program import Method, write
from prefix_jax.decoding.request import padded_length
from prefix_jax.errors import InputError, counted, first_line
from prefix_jax.learning.split import folded, merge
from prefix_jax.mesh import by_prompts, check_heads, make_mesh, shared_rows
from prefix_jax.runs.collectives import Collective, collectives
from prefix_jax.runs.programs import train_program
from prefix_jax.runs.shapes import (
    backbone_config,
    backbone_shapes,
    batch_shapes,
    placed,
    train_shapes,
)
from prefix_jax.runs.show import show_size
from prefix_jax.runs.slices import MEMORY, TWO_CORES, slice_devices

Program = Literal["train", "decode"]

MOST = 10
"""Kinds of collectives that are shown."""

VMEM_ADVICE = (
    "it is a chip's fast memory that the kernels of fused attention need too much of, "
    "for rows or a prefix so long: --backbone.fused False, or a lower data.pack or "
    "data.max_length"
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program; bytes are of each device."""

    program: Program
    topology: str
    devices: int
    seconds: float
    """To compile it."""
    held: dict[str, int]
    """Bytes of the arguments: backbone, what is trained with its optimizer, batch."""
    temporary: int
    """Bytes needed besides while it runs, results that replace no argument included."""
    refusal: str = ""
    """Why it does not fit, in the compiler's words; "": it fits."""
    advice: str = ""
    """What to do where it does not fit."""
    collectives: tuple[Collective, ...] | None = ()
    """None: the compiler did not tell."""
    shape: tuple[int, int] = (0, 0)
    """Rows and tokens of the batch, over all devices; of prompts, in decoding."""

    @property
    def total(self) -> int:
        return sum(self.held.values()) + self.temporary


def compile_programs(
    config: Config,
    topology: str,
    programs: Sequence[Program] = ("train", "decode"),
    say: Callable[[str], None] = lambda text: None,
) -> list[Compiled]:
    """Compile a recipe's training step and its decoding loop for a slice.

    Rows of a batch are as long as the recipe allows; stop strings are left out. Raises
    InputError, also for what `train` would refuse of such a model.
    """
    if not programs:
        raise InputError("programs is empty; expected train, decode or both")
    if config.mesh.parallel != "jit":
        raise InputError(
            f'mesh.parallel is "{config.mesh.parallel}"; compile is for "jit" only '
            "(--mesh.parallel jit)"
        )
    config = config.resolved()
    shape = backbone_config(config.backbone.name)
    check_heads(config.mesh, shape.kv_heads, config.backbone.name)
    mesh = slice_mesh(config, topology)
    lower = {"train": _lower_train, "decode": _lower_decode}
    found = []
    for program in programs:
        say(f"compiling {program} for {topology}, {counted(mesh.size, 'device')} ...")
        lowered, held, shapes = lower[program](config, mesh)
        started = time.monotonic()
        refusal, temporary = "", 0
        between: tuple[Collective, ...] | None = ()
        try:
            with _no_cache():
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refusal = first_line(error)
        else:
            memory = compiled.memory_analysis()
            assert memory is not None  # TPUs tell it
            temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes
            temporary -= memory.alias_size_in_bytes
            try:
                between = tuple(collectives(compiled.as_text() or ""))
            except jax.errors.JaxRuntimeError:  # as of a single v6e (libtpu 0.0.52)
                between = None
        found.append(
            Compiled(
                program,
                topology,
                mesh.size,
                time.monotonic() - started,
                held,
                temporary,
                refusal,
                _advice(config, program, refusal) if refusal else "",
                between,
                shapes,
            )
        )
    return found


def slice_mesh(config: Config, topology: str) -> Mesh:
    """The mesh of a recipe on a slice's devices; InputError where there is none."""
    rows, devices = config.train.batch_size, slice_devices(topology)
    try:
        return make_mesh(
            config.mesh, batch_size=rows // config.train.accumulate, given=devices
        )
    except InputError as error:
        raise InputError(f"{topology}: {error}") from error


def _advice(config: Config, program: Program, refusal: str) -> str:
    """What is left to do, cheapest first."""
    if "vmem" in refusal:
        return VMEM_ADVICE
    narrow = config.backbone.dtype == "bfloat16"
    train, mesh = program == "train", "--mesh.fsdp or --mesh.tensor, which part the"
    ways = [
        (not narrow, "--backbone.dtype bfloat16"),
        (config.backbone.fused is False and train, "--backbone.fused None"),
        (not config.backbone.remat and train, "--backbone.remat"),
        (train, "a higher --train.accumulate"),
        (True, f"{mesh} backbone over devices"),
        (train, "a lower --train.batch-size or --data.max-length (or --data.pack)"),
        (not train, "a lower --decode.batch-size or --data.max-length"),
    ]
    return "to make it fit: " + ", ".join(way for holds, way in ways if holds)


@contextlib.contextmanager
def _no_cache():
    """A program for a slice that is not there can be stored, but not read again."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    compilation_cache.reset_cache()  # it remembers whether it is in use
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def _lower_train(config: Config, mesh: Mesh):
    state, frozen = train_shapes(config, mesh)
    kv = jax.eval_shape(lambda *x: folded(merge(*x)), state.trainable, frozen)
    text_room(
        config.data.max_length,
        positions=backbone_config(config.backbone.name).n_positions,
        prefix_length=0 if kv is None else kv.position_offset,
        backbone=config.backbone.name,
    )
    batch = batch_shapes(config, mesh)
    _, step = train_program(config, mesh)
    held = {
        name: _bytes((state.trainable.get(name), frozen.get(name)))
        for name in ("backbone", "prefix")
    }
    held |= {
        "optimizer": _bytes(state.opt_state),
        "batch": _bytes(batch),
    }
    assert isinstance(step, jax.stages.Wrapped)
    return step.lower(state, frozen, batch), held, batch["tokens"].shape


def _lower_decode(config: Config, mesh: Mesh):
    decode, prefix = config.decode, None
    backbone = placed(jax.eval_shape(unrolled, backbone_shapes(config)), mesh)
    if config.train.method == "prefix":
        state, frozen = train_shapes(config, mesh)

        def fold(trainable, frozen):
            kv = folded(merge(trainable, frozen))
            return kv and kv.cast(backbone.dtype, rows=1)

        kv = jax.eval_shape(fold, state.trainable, frozen)
        prefix = placed(kv, mesh)
    room = backbone.config.n_positions - decode.max_new_tokens
    rows = shared_rows(decode.batch_size, mesh)
    text = rows, padded_length(min(config.data.max_length, room))
    inputs = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_prompts(mesh))
        for name, shape, dtype in (
            ("tokens", text, jnp.int32),
            ("mask", text, jnp.bool_),
            ("seeds", (rows, 2), jnp.uint32),
        )
    }
    held = {"backbone": _bytes(backbone), "prefix": _bytes(prefix)}
    held["batch"] = _bytes(inputs)
    end = decode.end_tokens
    if end is None:
        end = backbone.config.end_tokens
    method = Method.of(decode, end)
    lowered = write.lower(backbone, prefix, **inputs, method=method, mesh=mesh)
    return lowered, held, text


def _bytes(tree) -> int:
    """Of each device's part of a tree."""

    def one(leaf):
        shape = leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(one(leaf) for leaf in jax.tree.leaves(tree))


def print_compiled(found: Sequence[Compiled], console: Console) -> None:
    """Memory and collectives of each program, and what to do where one does not fit."""
    for one in found:
        chip = one.topology.partition(":")[0]
        memory = MEMORY.get(chip)
        share = " of two devices" if chip in TWO_CORES else ""
        verdict = "does NOT fit" if one.refusal else "fits"
        console.print(
            f"\n{one.program} on {one.topology} ({counted(one.devices, 'device')}): "
            f"{verdict}, compiled in {one.seconds:.0f} s",
            highlight=False,
        )
        what = "tokens" if one.program == "train" else "tokens each to go on from"
        console.print(f"{one.shape[0]} rows of {one.shape[1]} {what}", highlight=False)
        table = Table(caption=f"{memory} GB a chip{share}" if memory else None)
        table.add_column("memory of each device")
        table.add_column("bytes", justify="right")
        for name, size in one.held.items():
            table.add_row(name, show_size(size))
        if not one.refusal:
            table.add_row("temporary", show_size(one.temporary))
            table.add_row("in all", show_size(one.total))
        console.print(table)
        if one.refusal:
            console.print(f"{one.refusal}\n{one.advice}", highlight=False, markup=False)
            continue
        if one.collectives is None:
            console.print("what devices send was not told", highlight=False)
            continue
        table = Table(caption=None if one.collectives else "no collectives")
        for name in ("collective", "array", "bytes", "times"):
            table.add_column(name, justify="left" if name in "collective" else "right")
        for row in one.collectives[:MOST]:
            table.add_row(row.kind, row.array, show_size(row.bytes), str(row.times))
        if len(one.collectives) > MOST:
            rest = one.collectives[MOST:]
            size = show_size(sum(row.bytes * row.times for row in rest))
            table.add_row(f"{len(rest)} smaller kinds", "", size, "")
        console.print(table)
