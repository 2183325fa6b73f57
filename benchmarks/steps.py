"""Our training step on made-up text of any size: its seconds and its memory."""

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from operations import Method, operations
from reports import gpt2_shape, positive, take_turns

import prefix_jax as pj
from prefix_jax.learning import cross_entropy
from prefix_jax.learning.loss import Batch
from prefix_jax.learning.split import Params
from prefix_jax.mesh import by_rows, make_mesh, replicated
from prefix_jax.runs.prepare import how_to_load

OPTIMIZER = pj.make_optimizer(pj.OptimConfig(learning_rate=1e-3), 1000)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step trains, and on how much text."""

    shape: pj.GPT2Config
    dtype: str
    batch: int
    """Rows, over all devices."""
    length: int
    """Tokens of each row; the second half of them carries loss."""
    prefix: int
    """Positions of the prefix; no matter to the other methods."""
    method: Method = "prefix"
    devices: int = 1
    remat: bool = False
    unroll: bool = False
    chunked: bool = True
    """Whether the loss makes logits of some tokens at a time, as it always does; else
    of all at once."""

    def __post_init__(self):
        needed, limit = self.prefix + self.length, self.shape.n_positions
        if needed > limit:
            raise pj.InputError(
                f"a prefix of {self.prefix} and rows of {self.length} tokens take "
                f"{needed} positions; this shape has {limit}"
            )

    @property
    def tokens(self) -> int:
        """That a step reads."""
        return self.batch * self.length

    @property
    def operations(self) -> float:
        """Useful floating-point operations of a step."""
        targets = self.length - max(1, self.length // 2)
        prefix = self.prefix if self.method == "prefix" else 0
        lengths = np.array([self.length])
        row = operations(self.shape, lengths, targets, prefix, self.method)
        return self.batch * row["in all"]


def add_work(parser: argparse.ArgumentParser) -> None:
    """Options for the text of a step."""
    parser.add_argument("--batch", type=positive, default=8, help="rows of a step")
    parser.add_argument("--length", type=positive, default=64, help="tokens of a row")
    parser.add_argument(
        "--steps", type=positive, default=1, help="of each side in a round"
    )


def asked_work(options: argparse.Namespace) -> Work:
    """The step that is asked for, as the platform runs it best."""
    return Work(
        gpt2_shape(options.shape),
        options.dtype,
        options.batch,
        options.length,
        options.prefix_length,
        # A loop over layers copies what the backward pass needs, which CPUs feel.
        unroll=jax.default_backend() == "cpu",
    )


class Step:
    """A compiled step with all that it needs to run."""

    def __init__(self, work: Work):
        self.work = work
        mesh = None
        if work.devices > 1:
            config = pj.MeshConfig(data=work.devices)
            mesh = pj.make_mesh(config, batch_size=work.batch)
        state, frozen = _start(work, _backbone(work.shape, work.dtype))
        batch = _batch(work)
        if mesh is not None:
            state, frozen = jax.device_put((state, frozen), replicated(mesh))
            batch = jax.device_put(batch, by_rows(mesh))
        self.state, self.frozen, self.batch = state, frozen, batch
        self.compiled = _compile(work, state, frozen, batch, mesh)
        self.cpu_seconds: list[float] = []
        """Of a step, on all cores together, for each `run`."""

    def run(self, steps: int = 1) -> None:
        """So many steps, each to its end."""
        started = time.process_time()
        for _ in range(steps):
            self.state, metrics = self.compiled(self.state, self.frozen, self.batch)
            jax.block_until_ready(metrics)
        self.cpu_seconds.append((time.process_time() - started) / steps)


def measure(
    works: Mapping[str, Work], options: argparse.Namespace
) -> dict[str, tuple[Step, dict[str, object]]]:
    """Run the steps in turns: each with its row of seconds and bytes.

    `cpu_seconds` are those of all cores together, which other programs on the machine
    hardly change, unlike `seconds`. `measured_peak` is the most bytes that the device
    has had in use, with all that the steps before hold; None where it does not count
    them, or one of those needed more.
    """
    steps, peaks = {}, {}
    for name, work in works.items():
        steps[name] = step = Step(work)
        before = _peak()
        step.run()  # the first one is slower
        peaks[name] = _peak() if _peak() != before else None
        print(f"{name}: compiled", flush=True)
    turns = {name: partial(step.run, options.steps) for name, step in steps.items()}
    found = {}
    for name, took in take_turns(turns, options.rounds).items():
        step, rounds = steps[name], [seconds / options.steps for seconds in took]
        seconds = statistics.median(rounds)
        found[name] = (
            step,
            {
                "seconds": seconds,
                "rounds": rounds,
                "cpu_seconds": statistics.median(step.cpu_seconds[1:]),
                "tokens_per_second": step.work.tokens / seconds,
                "operations": step.work.operations,
                "memory": _memory(step.compiled),
                "measured_peak": peaks[name],
            },
        )
    return found


def _peak() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def memory_needed(work: Work) -> dict[str, int]:
    """Bytes of each device, by the compiler's analysis; nothing is run or made.

    `total` is arguments (backbone, state, batch), temporaries and results, less those
    results that take the place of arguments (`aliased`).
    """

    def make():
        return *_start(work, _make_backbone(work.shape, work.dtype)), _batch(work)

    state, frozen, batch = jax.eval_shape(make)
    return _memory(_compile(work, state, frozen, batch, None))


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    found = compiled.memory_analysis()
    assert found is not None  # CPUs, GPUs and TPUs all tell
    parts = {
        "arguments": found.argument_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
        "results": found.output_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values()) - 2 * parts["aliased"]}


def _make_backbone(shape: pj.GPT2Config, dtype: str) -> pj.GPT2:
    fused = how_to_load(pj.BackboneConfig(), make_mesh()).get("fused", False)
    backbone = pj.GPT2(shape, key=jax.random.key(0), dtype=dtype, fused=fused)
    return jax.tree.map(lambda x: x.astype(dtype), backbone)


# Steps of one shape share their frozen weights.
_backbone = lru_cache(maxsize=1)(_make_backbone)


def _start(work: Work, backbone: pj.GPT2) -> tuple[pj.TrainState, Params]:
    backbone = jax.tree.map(lambda x: x, backbone)  # a copy that shares the leaves
    backbone.remat, backbone.unroll = work.remat, work.unroll
    params: Params = {"backbone": backbone}
    key = jax.random.key(0)
    if work.method == "prefix":
        form = pj.PrefixConfig(init="random", length=work.prefix)
        params["prefix"] = pj.init_prefix(backbone, form, key=key)
    trainable, frozen = pj.split(params, work.method)
    return pj.init_train_state(trainable, OPTIMIZER, key), frozen


def _batch(work: Work) -> Batch:
    rows = work.batch, work.length
    tokens = jax.random.randint(jax.random.key(1), rows, 0, work.shape.vocab_size)
    carries_loss = jnp.arange(work.length) >= max(1, work.length // 2)
    return {
        "tokens": tokens,
        "mask": jnp.ones(rows, bool),
        "segments": jnp.ones(rows, jnp.int32),
        "loss_mask": jnp.broadcast_to(carries_loss, rows),
    }


def _compile(work: Work, state, frozen, batch, mesh) -> jax.stages.Compiled:
    step = pj.make_train_step(OPTIMIZER, mesh=mesh)
    assert isinstance(step, jax.stages.Wrapped)
    with contextlib.nullcontext() if work.chunked else _whole_loss():
        lowered = step.lower(state, frozen, batch)
    return lowered.compile()


@contextlib.contextmanager
def _whole_loss() -> Iterator[None]:
    """What is traced inside cuts the loss into one chunk: all of its logits at once.

    No setting asks for that, since nobody should want it.
    """
    with mock.patch.object(cross_entropy, "CHUNKS", 1):
        yield
