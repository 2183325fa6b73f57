"""How fast is prefix-tuning, beside PEFT and beside the best PyTorch that we can write?

E2E's training examples through a GPT-2 of random weights, a flat prefix, AdamW. Three
sides take turns in one process:

    ours    `make_train_step` on packed rows
    peft    PEFT as its users run it: batches padded to their longest row, eager
    torch   transformers' GPT-2 with our own prefix: the same packed rows and masks,
            SDPA, logits for target tokens only, fused AdamW; --compile compiles it

    python benchmarks/train_step.py --e2e FOLDER --tokenizer FOLDER --out FILE.json

Examples per second are medians over rounds. The share of the ceiling is the useful
operations of a step (`operations`, shown in the JSON; padding is not useful) over its
time, divided by what the best of a few square matrix products reaches in the same run.
"""

import argparse
import dataclasses
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from transformers.cache_utils import DynamicCache

import prefix_jax as pj
from prefix_jax.data.bins import Bins, packed_batches
from prefix_jax.data.tasks import load_examples
from prefix_jax.data.tokens import Row, encode_examples
from prefix_jax.process import keep_freed_memory

SHAPES = {
    "gpt2": pj.GPT2Config(),
    "gpt2-medium": pj.GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": pj.GPT2Config(n_embd=1280, n_layer=36, n_head=20),
}
LEARNING_RATE = 1e-3


@dataclasses.dataclass
class Side:
    """One way to train: `step` takes the next batch and returns its examples."""

    step: Callable[[], int]
    first: float = 0.0
    """Seconds of the first step: compilation, if there is any."""
    rates: list[float] = dataclasses.field(default_factory=list)
    """Examples per second of each round."""


def rows_of(options) -> list[Row]:
    config = pj.DataConfig(source="e2e", path=str(options.e2e))
    tokenizer = pj.load_tokenizer(options.tokenizer)
    return list(encode_examples(load_examples(config, "train"), tokenizer, config).rows)


def packed(rows: list[Row], options) -> Iterator[dict[str, np.ndarray]]:
    """Packed batches with about as many examples as PEFT's have."""
    lengths = np.array([len(row.tokens) for row in rows])
    bins = Bins(lengths, options.pack, seed=0)
    size = max(1, round(options.batch_size * lengths.mean() / options.pack / bins.fill))
    return packed_batches(rows, bins, batch_size=size, seed=0, pad_id=0)


def examples_in(batch) -> int:
    return int(batch["segments"].max(axis=1).sum())


def ours(backbone: pj.GPT2, rows: list[Row], options) -> Side:
    key = jax.random.key(0)
    shape = pj.PrefixConfig(init="random", length=options.prefix_length)
    prefix = pj.init_prefix(backbone, shape, key=key)
    trainable, frozen = pj.split({"backbone": backbone, "prefix": prefix}, "prefix")
    optimizer = pj.make_optimizer(pj.OptimConfig(learning_rate=LEARNING_RATE), 1000)
    state = pj.init_train_state(trainable, optimizer, key)
    step = pj.make_train_step(optimizer)
    batches = packed(rows, options)

    def run() -> int:
        nonlocal state
        batch = next(batches)
        arrays = jax.tree.map(jnp.asarray, batch)
        state, metrics = step(state, frozen, arrays)
        jax.block_until_ready(metrics)
        return examples_in(batch)

    return Side(run)


def load_torch(backbone: pj.GPT2, options) -> transformers.GPT2LMHeadModel:
    folder = Path(options.scratch) / "backbone"
    pj.save_backbone(folder, backbone)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # The published model has dropout; without it both sides do the same work.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)
    return model.eval()


def autocast(model, options):
    return torch.autocast(
        model.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"
    )


def as_peft(backbone: pj.GPT2, rows: list[Row], options) -> Side:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=options.prefix_length
    )
    model = peft.get_peft_model(load_torch(backbone, options), config)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], LEARNING_RATE
    )
    order = itertools.cycle(np.random.default_rng(0).permutation(len(rows)))

    def run() -> int:
        chosen = [rows[next(order)] for _ in range(options.batch_size)]
        width = max(len(row.tokens) for row in chosen)
        shape = options.batch_size, width
        tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, -100)
        for number, row in enumerate(chosen):
            length = len(row.tokens)
            tokens[number, :length], mask[number, :length] = row.tokens, 1
            labels[number, :length][row.loss_mask] = row.tokens[row.loss_mask]
        given = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
        given = {k: torch.from_numpy(v).to(model.device) for k, v in given.items()}
        with autocast(model, options):
            loss = model(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return options.batch_size

    return Side(run)


def as_torch(backbone: pj.GPT2, rows: list[Row], options) -> Side:
    model = load_torch(backbone, options)
    shape, length = model.config, options.prefix_length
    dims = (shape.n_layer, 2, shape.n_head, length, shape.n_embd // shape.n_head)
    prefix = torch.nn.Parameter(0.02 * torch.randn(dims, device=model.device))
    optimizer = torch.optim.AdamW([prefix], LEARNING_RATE, fused=True)
    batches = packed(rows, options)

    def loss_of(tokens, segments, positions, targets):
        size, width = tokens.shape
        cache = DynamicCache()
        for layer in range(shape.n_layer):
            keys, values = prefix[layer, :, None].expand(-1, size, -1, -1, -1)
            cache.update(keys, values, layer)
        causal = torch.ones(width, width, dtype=torch.bool, device=tokens.device).tril()
        own = causal & (segments[:, :, None] == segments[:, None, :])
        seen = torch.cat([own.new_ones(size, width, length), own], -1)[:, None]
        hidden = model.transformer(
            tokens,
            past_key_values=cache,
            attention_mask=seen,
            position_ids=positions + length,
            use_cache=True,
        ).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[targets])
        return torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][targets])

    if options.compile:
        loss_of = torch.compile(loss_of, dynamic=False)

    def run() -> int:
        batch = next(batches)
        segments = batch["segments"]
        number = np.arange(segments.shape[1])
        begins = np.diff(segments, axis=1, prepend=-1) != 0
        starts = np.maximum.accumulate(np.where(begins, number, 0), axis=1)
        given = (
            batch["tokens"].astype(np.int64),
            segments,
            number - starts,
            batch["loss_mask"][:, 1:],
        )
        with autocast(model, options):
            loss = loss_of(*(torch.from_numpy(x).to(model.device) for x in given))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return examples_in(batch)

    return Side(run)


def operations(shape: pj.GPT2Config, rows: list[Row], prefix_length: int) -> dict:
    """Useful floating-point operations of one average example.

    Forward, and backward to the activations only: a frozen matrix of n numbers costs
    2n + 2n a token. A token's attention reads the prefix and the tokens up to itself,
    in two products forward and four backward.
    """
    d, layers = shape.n_embd, shape.n_layer
    matrices = layers * (4 * d * d + 2 * d * shape.mlp_width)
    lengths = np.array([len(row.tokens) for row in rows])
    targets = float(np.mean([row.loss_mask.sum() for row in rows]))
    seen = lengths * prefix_length + lengths * (lengths + 1) / 2
    parts = {
        "layers": 4 * matrices * float(lengths.mean()),
        "head": 4 * shape.vocab_size * d * targets,
        "attention": 6 * 2 * d * layers * float(seen.mean()),
    }
    return {**parts, "in all": sum(parts.values()), "tokens": float(lengths.mean())}


def ceiling(dtype: str) -> float:
    """Operations per second of the best of a few square matrix products."""
    best = 0.0
    for size in (1024, 2048, 4096):
        x = jnp.ones((size, size), dtype)
        multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
        multiply(x).block_until_ready()
        for _ in range(3):
            started = time.perf_counter()
            multiply(x).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def measure(sides: dict[str, Side], options) -> None:
    for side in sides.values():
        started = time.perf_counter()
        side.step()
        side.first = time.perf_counter() - started
        side.step()
    for number in range(options.rounds):
        for name, side in sides.items():
            started, done = time.perf_counter(), 0
            for _ in range(options.steps):
                done += side.step()
            side.rates.append(done / (time.perf_counter() - started))
            print(f"round {number}: {name} {side.rates[-1]:.2f} examples/s", flush=True)


def main() -> None:
    """The command line."""
    keep_freed_memory()  # as `prefix-jax` does; PyTorch's tensors gain by it as well
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--e2e", type=Path, required=True, help="the official CSVs")
    parser.add_argument("--tokenizer", default="tiny", help="name or folder")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=10, help="examples a step")
    parser.add_argument("--pack", type=int, default=256, help="tokens a packed row")
    parser.add_argument("--prefix-length", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=["ours", "peft", "torch"])
    parser.add_argument("--compile", action="store_true", help="torch.compile `torch`")
    parser.add_argument("--scratch", default="/tmp/prefix_jax_train_step")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args()

    rows, shape = rows_of(options), SHAPES[options.shape]
    on_cpu = jax.default_backend() == "cpu"
    backbone = pj.GPT2(shape, key=jax.random.key(0), dtype=options.dtype, unroll=on_cpu)
    backbone = jax.tree.map(lambda x: x.astype(options.dtype), backbone)
    make = {"ours": ours, "peft": as_peft, "torch": as_torch}
    sides = {name: make[name](backbone, rows, options) for name in options.sides}
    measure(sides, options)

    count, limit = (
        operations(shape, rows, options.prefix_length),
        ceiling(options.dtype),
    )
    median = {name: statistics.median(side.rates) for name, side in sides.items()}
    for name, rate in median.items():
        share = rate * count["in all"] / limit
        print(
            f"{name}: {rate:.2f} examples/s, {rate * count['tokens']:.0f} tokens/s, "
            f"{share:.0%} of the ceiling ({limit / 1e9:.0f} Gflop/s); first step "
            f"{sides[name].first:.1f} s; ours / {name} "
            f"{median.get('ours', rate) / rate:.2f}"
        )
    report = {
        "settings": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
            if key not in ("out", "e2e", "scratch", "tokenizer")
        },
        "examples_per_second": median,
        "rounds": {name: side.rates for name, side in sides.items()},
        "first_step_seconds": {name: side.first for name, side in sides.items()},
        "share_of_ceiling": {
            name: rate * count["in all"] / limit for name, rate in median.items()
        },
        "ceiling_flops": limit,
        "operations_per_example": count,
        "devices": [device.device_kind for device in jax.devices()],
        "torch_threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.processor()}",
        "versions": {
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
