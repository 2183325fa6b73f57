"""Would a frozen backbone in int8 pay? Not part of the package: see the README here.

    python benchmarks/int8.py --e2e FOLDER --backbone NAME --out FILE.json

The layers' matrices are kept as int8 with a scale for each output of each layer, and
widened where they are used, layer by layer. Beside the same weights in bf16: bytes of
the backbone, memory and seconds of a training step (packed E2E examples), seconds to
write 32 tokens for 1 and for 32 prompts, loss on E2E's dev set.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from reports import take_turns, write_report

import prefix_jax as pj
from prefix_jax.data.bins import Bins, packed_batches
from prefix_jax.data.tasks import load_examples
from prefix_jax.data.tokens import encode_examples
from prefix_jax.learning.split import Params
from prefix_jax.learning.step import make_eval_step
from prefix_jax.model.attention import precision
from prefix_jax.model.layers import Dense

SEPARATOR = "\n"


class Int8Dense(nnx.Module):
    """A stack of matrices in int8, each output's times a scale of its own."""

    def __init__(self, dense: Dense):
        self.inputs, self.bias = dense.inputs, dense.bias
        kernel = dense.kernel[...].astype(jnp.float32)
        inputs = tuple(range(1, 1 + self.inputs))
        scale = jnp.abs(kernel).max(inputs, keepdims=True) / 127
        scale = jnp.where(scale == 0, 1, scale)
        self.kernel = nnx.Variable(jnp.round(kernel / scale).astype(jnp.int8))
        self.scale = nnx.Variable(scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        """One layer's product, as `Dense`'s."""
        kernel = self.kernel[...]
        rows = x.reshape(*x.shape[:2], -1)
        matrix = kernel.reshape(rows.shape[-1], -1).astype(x.dtype)
        product = jnp.matmul(rows, matrix, precision=precision(x.dtype))
        scale = self.scale[...].reshape(-1).astype(x.dtype)
        product = (product * scale).reshape(*x.shape[:2], *kernel.shape[self.inputs :])
        bias = self.bias
        return product if bias is None else product + bias[...].astype(x.dtype)


def in_int8(backbone: pj.Backbone) -> pj.Backbone:
    """The same backbone; embeddings, norms and head stay as they are."""
    narrow = jax.tree.map(lambda x: x, backbone)  # a copy that shares the leaves
    for block in narrow.blocks:
        for name, part in list(vars(block).items()):
            if isinstance(part, Dense):
                setattr(block, name, Int8Dense(part))
    return narrow


class Side:
    """A backbone, its training step and what it costs."""

    def __init__(self, backbone: pj.Backbone, tokenizer, rows, options):
        self.backbone, self.tokenizer = backbone, tokenizer
        key = jax.random.key(0)
        shape = pj.PrefixConfig(init="random", length=options.prefix_length)
        params: Params = {
            "backbone": backbone,
            "prefix": pj.init_prefix(backbone, shape, key=key),
        }
        trainable, self.frozen = pj.split(params, "prefix")
        optimizer = pj.make_optimizer(pj.OptimConfig(learning_rate=1e-3), 1000)
        self.state = pj.init_train_state(trainable, optimizer, key)
        lengths = np.array([len(row.tokens) for row in rows])
        self.batches = packed_batches(
            rows,
            Bins(lengths, options.pack, seed=0),
            batch_size=options.rows,
            seed=0,
            pad_id=0,
        )
        step = jax.jit(pj.make_train_step(optimizer), donate_argnums=0)
        batch = jax.tree.map(jnp.asarray, next(self.batches))
        self.step = step.lower(self.state, self.frozen, batch).compile()
        memory = self.step.memory_analysis()
        assert memory is not None
        self.numbers = {
            "backbone_bytes": sum(x.nbytes for x in jax.tree.leaves(backbone)),
            "step_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        }

    def train(self) -> None:
        """Two steps."""
        for _ in range(2):
            batch = jax.tree.map(jnp.asarray, next(self.batches))
            self.state, _ = self.step(self.state, self.frozen, batch)
        jax.block_until_ready(self.state)

    def write(self, prompts) -> None:
        """32 tokens after each prompt."""
        few = pj.DecodeConfig(max_new_tokens=32, min_new_tokens=32)
        pj.generate(self.backbone, self.tokenizer, prompts, decode=few)


def loss_of(backbone: pj.Backbone, rows, pack: int) -> float:
    """Nats per target token, without a prefix."""
    bins = Bins(np.array([len(row.tokens) for row in rows]), pack, seed=0)
    batches = packed_batches(rows, bins, batch_size=4, seed=0, pad_id=0)
    evaluate, nll, tokens = make_eval_step(), 0.0, 0
    for _ in range(len(bins) // 4):
        found = evaluate(backbone, None, jax.tree.map(jnp.asarray, next(batches)))
        nll, tokens = nll + float(found["nll"]), tokens + int(found["tokens"])
    return nll / tokens


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--e2e", type=Path, required=True, help="E2E's official CSVs")
    parser.add_argument("--backbone", default="smollm2-135m", help="name or file")
    parser.add_argument("--prefix-length", type=int, default=10)
    parser.add_argument("--pack", type=int, default=128, help="tokens a packed row")
    parser.add_argument("--rows", type=int, default=5, help="packed rows of a step")
    parser.add_argument("--dev-rows", type=int, default=500, help="rows for the loss")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--plot", type=Path, help="where a picture of it goes")
    options = parser.parse_args()

    unroll = jax.default_backend() == "cpu"
    wide = pj.load_backbone(options.backbone, dtype="bfloat16", unroll=unroll)
    tokenizer = pj.load_tokenizer(options.backbone)
    data = pj.DataConfig(source="e2e", path=str(options.e2e), separator=SEPARATOR)
    data = dataclasses.replace(data, max_length=options.pack)
    texts = {
        split: encode_examples(load_examples(data, split), tokenizer, data)
        for split in ("train", "validation")
    }
    rows = texts["train"].rows
    sides = {
        "bfloat16": Side(wide, tokenizer, rows, options),
        "int8": Side(in_int8(wide), tokenizer, rows, options),
    }
    sources = [example.source for example in texts["validation"].examples[:32]]
    prompts = pj.encode_prompts(sources, tokenizer, SEPARATOR)
    results: dict[str, dict] = {name: side.numbers for name, side in sides.items()}
    works: dict[str, Callable[[Side], None]] = {
        "seconds_per_step": Side.train,
        "seconds_to_write_1": lambda side: side.write(prompts[:1]),
        "seconds_to_write_32": lambda side: side.write(prompts),
    }
    for what, work in works.items():
        turns = {name: lambda s=side, w=work: w(s) for name, side in sides.items()}
        for turn in turns.values():
            turn()  # compiles
        for name, took in take_turns(turns, options.rounds).items():
            each = 2 if work is Side.train else 1
            results[name][what] = statistics.median(took) / each
    held_out = texts["validation"].rows[: options.dev_rows]
    for name, side in sides.items():
        results[name]["dev_loss"] = loss_of(side.backbone, held_out, options.pack)
        print(name, results[name])
    options.backbone = Path(options.backbone).name
    write_report(options, "int8", {"sides": results})


if __name__ == "__main__":
    main()
