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

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from operations import ceiling, operations
from reports import add_texts, make_parser, random_backbone, take_turns, write_report
from transformers.cache_utils import DynamicCache

import prefix_jax as pj
from prefix_jax.data.bins import Bins, packed_batches
from prefix_jax.data.tasks import load_examples
from prefix_jax.data.tokens import Row, encode_examples
from prefix_jax.process import keep_freed_memory

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


def load_torch(backbone: pj.GPT2) -> transformers.GPT2LMHeadModel:
    with tempfile.TemporaryDirectory() as folder:
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
    model = peft.get_peft_model(load_torch(backbone), config)
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
    model = load_torch(backbone)
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


def measure(sides: dict[str, Side], options) -> None:
    """Fill in the seconds of the first steps, and the rates of each round."""
    for side in sides.values():
        started = time.perf_counter()
        side.step()
        side.first = time.perf_counter() - started
        side.step()
    done: dict[str, list[int]] = {name: [] for name in sides}

    def turn(name: str) -> None:
        done[name].append(sum(sides[name].step() for _ in range(options.steps)))

    turns = {name: partial(turn, name) for name in sides}
    for name, took in take_turns(turns, options.rounds).items():
        sides[name].rates = [
            number / seconds for number, seconds in zip(done[name], took, strict=True)
        ]


def main() -> None:
    """The command line."""
    keep_freed_memory()  # as `prefix-jax` does; PyTorch's tensors gain by it as well
    parser = make_parser(str(__doc__), rounds=5)
    add_texts(parser)
    parser.add_argument("--batch-size", type=int, default=10, help="examples a step")
    parser.add_argument("--pack", type=int, default=256, help="tokens a packed row")
    parser.add_argument("--steps", type=int, default=3, help="of each side in a round")
    parser.add_argument("--sides", nargs="+", default=["ours", "peft", "torch"])
    parser.add_argument("--compile", action="store_true", help="torch.compile `torch`")
    parser.set_defaults(prefix_length=5)
    options = parser.parse_args()

    rows = rows_of(options)
    backbone = random_backbone(options.shape, options.dtype)
    make = {"ours": ours, "peft": as_peft, "torch": as_torch}
    sides = {name: make[name](backbone, rows, options) for name in options.sides}
    measure(sides, options)

    lengths = np.array([len(row.tokens) for row in rows])
    targets = float(np.mean([row.loss_mask.sum() for row in rows]))
    count = operations(backbone.config, lengths, targets, options.prefix_length)
    limit = ceiling(options.dtype)
    median = {name: statistics.median(side.rates) for name, side in sides.items()}
    share = {name: rate * count["in all"] / limit for name, rate in median.items()}
    for name, rate in median.items():
        print(
            f"{name}: {rate:.2f} examples/s, {rate * count['tokens']:.0f} tokens/s, "
            f"{share[name]:.0%} of the ceiling ({limit / 1e9:.0f} Gflop/s); first step "
            f"{sides[name].first:.1f} s; ours / {name} "
            f"{median.get('ours', rate) / rate:.2f}"
        )
    results = {
        "examples_per_second": median,
        "rounds": {name: side.rates for name, side in sides.items()},
        "first_step_seconds": {name: side.first for name, side in sides.items()},
        "share_of_ceiling": share,
        "ceiling_flops": limit,
        "operations_per_example": count,
        "torch_threads": torch.get_num_threads(),
    }
    write_report(options, "train_step", results, ("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
