"""Does ours learn what PEFT learns? One recipe, trained here and through PEFT.

    python benchmarks/learning.py RECIPE [--e2e FOLDER] [--steps N] --out FILE

Both sides start from the same prefix and read the same examples in the same order,
ours in packed rows and PEFT's padded, each by its own backbone, loss and optimizer. The
optimizer works in our units on both sides: PEFT's embedding is parametrised as numbers
times the sizes of the backbone's keys and values (powers of two, so nothing rounds).
Needs PyTorch and PEFT.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from reports import write_report

import prefix_jax as pj
from prefix_jax.data.batches import Batch
from prefix_jax.learning.split import Params
from prefix_jax.model.prefix_kinds import FlatPrefix
from prefix_jax.recipe import load_recipe
from prefix_jax.runs.prepare import Setup, prepare

LossOfStep = Callable[[Batch], float]


def ours(setup: Setup, prefix: FlatPrefix) -> LossOfStep:
    """One step of `make_train_step` on a batch, and the loss before it."""
    config = setup.config
    params: Params = {"backbone": setup.backbone, "prefix": prefix}
    trainable, frozen = pj.split(params, "prefix")
    optimizer = pj.make_optimizer(config.optim, config.train.steps)
    state = pj.init_train_state(trainable, optimizer, jax.random.key(config.train.seed))
    step = pj.make_train_step(optimizer, config.train)

    def run(batch: Batch) -> float:
        nonlocal state
        state, metrics = step(state, frozen, jax.tree.map(jnp.asarray, batch))
        return float(metrics["loss"])

    return run


class Units(torch.nn.Module):
    """Numbers of the size of 1 in place of a weight."""

    def __init__(self, scale: torch.Tensor):
        super().__init__()
        self.scale = scale

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers * self.scale

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.scale


def theirs(setup: Setup, prefix: FlatPrefix) -> LossOfStep:
    """The same through PEFT, from the files that we write for it."""
    config = setup.config
    with tempfile.TemporaryDirectory() as folder:
        backbone, stored = f"{folder}/backbone", f"{folder}/prefix"
        pj.save_backbone(backbone, setup.backbone)
        pj.save_prefix(
            stored,
            prefix(),
            backbone=setup.backbone,
            base_model_name=backbone,
        )
        base = transformers.AutoModelForCausalLM.from_pretrained(
            backbone, dtype=torch.float32
        )
        # `PeftModel.from_pretrained` gives prefixes that cannot be trained.
        adapter = peft.PrefixTuningConfig.from_pretrained(stored)
        adapter.inference_mode = False
        model = peft.get_peft_model(base.eval(), adapter)
        peft.set_peft_model_state_dict(model, peft.load_peft_weights(stored))
    encoder = model.get_submodule("prompt_encoder.default")
    embedding = encoder.get_submodule("embedding")
    sizes = jnp.stack([prefix.key_scale[...], prefix.value_scale[...]], 1)  # L 2 1 H 1
    width = setup.backbone.config.head_width
    scale = torch.from_numpy(np.array(sizes).repeat(width, -1).reshape(1, -1))
    torch.nn.utils.parametrize.register_parametrization(
        embedding, "weight", Units(scale)
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optim, steps = config.optim, config.train.steps
    assert optim.learning_rate is not None  # `prepare` resolved it
    optimizer = torch.optim.AdamW(
        trained,
        optim.learning_rate,
        betas=(optim.b1, optim.b2),
        weight_decay=optim.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)

    def run(batch: Batch) -> float:
        loss = model(**padded(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, optim.clip_norm or float("inf"))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def padded(batch: Batch) -> dict[str, torch.Tensor]:
    """The texts of packed rows, a row each, as PEFT's users have them."""
    texts = list(texts_of(batch))
    size = len(texts), max(len(tokens) for tokens, _ in texts)
    ids, mask = np.zeros(size, np.int64), np.zeros(size, np.int64)
    labels = np.full(size, -100)
    for row, (tokens, loss_mask) in enumerate(texts):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)][loss_mask] = tokens[loss_mask]
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(values) for name, values in given.items()}


def texts_of(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and loss mask of each text."""
    for row, segments in enumerate(batch["segments"]):
        for number in range(1, segments.max() + 1):
            own = segments == number
            yield batch["tokens"][row, own], batch["loss_mask"][row, own]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="with data.pack and a flat prefix")
    parser.add_argument("--e2e", help="folder of the data (data.path)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--plot", type=Path, help="where a picture of it goes")
    options = parser.parse_args()
    config = load_recipe(options.recipe)
    changes: dict[str, object] = {"backbone.dtype": "float32"}
    if options.e2e:
        changes["data.path"] = options.e2e
    if options.steps:
        changes["train.steps"] = options.steps
    config = config.replaced(changes)
    if config.optim.schedule != "linear" or config.optim.warmup_steps:
        parser.error("PEFT's side knows a linear schedule without warm-up only")

    setup = prepare(config)
    rows = setup.rows("train")
    bins = setup.bins(rows)
    prefix = setup.initial_params(rows).get("prefix")
    if bins is None or not isinstance(prefix, FlatPrefix):
        parser.error("give a recipe with data.pack and a flat prefix")
    sides = {"ours": ours(setup, prefix), "peft": theirs(setup, prefix)}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    batches = setup.train_batches(rows, bins)
    for number in range(1, setup.config.train.steps + 1):
        batch = next(batches)
        for name, step in sides.items():
            losses[name].append(step(batch))
        shown = ", ".join(f"{name} {found[-1]:.4f}" for name, found in losses.items())
        print(f"step {number}: loss before it {shown}", flush=True)
    apart = np.abs(np.subtract(losses["ours"], losses["peft"]))
    print(f"losses differ by {apart.max():.1e} at most, {apart.mean():.1e} on average")
    options.recipe, options.e2e = options.recipe.name, None
    options.shape, options.dtype = setup.config.backbone.name, "float32"
    results = {
        "losses": losses,
        "largest_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
        "config": dataclasses.asdict(setup.config.optim),
    }
    write_report(options, "learning", results, ("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
