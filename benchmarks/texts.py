"""Texts as rows and packed batches of tokens, the same for every side."""

from collections.abc import Iterator

import numpy as np

import prefix_jax as pj
from prefix_jax.data.bins import Bins, packed_batches
from prefix_jax.data.tasks import load_examples
from prefix_jax.data.tokens import Row, encode_examples
from prefix_jax.runs.shapes import backbone_config

LEARNING_RATE = 1e-3


def rows_of(options) -> list[Row]:
    """E2E's training examples, or texts of `length` random tokens, all with loss."""
    if options.length:
        vocabulary, shape = (
            backbone_config(options.shape).vocab_size,
            (256, options.length),
        )
        draw = np.random.default_rng(0).integers(0, vocabulary, shape)
        loss_mask = np.arange(options.length) > 0
        return [Row(tokens.astype(np.int32), loss_mask) for tokens in draw]
    config = pj.DataConfig(source="e2e", path=str(options.e2e))
    tokenizer = pj.load_tokenizer(options.tokenizer)
    return list(encode_examples(load_examples(config, "train"), tokenizer, config).rows)


def packed(
    rows: list[Row], width: int, examples: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of packed rows of `width` tokens, with about so many examples each."""
    lengths = np.array([len(row.tokens) for row in rows])
    bins = Bins(lengths, width, seed=0)
    size = max(1, round(examples * lengths.mean() / width / bins.fill))
    return packed_batches(rows, bins, batch_size=size, seed=0, pad_id=0)


def examples_in(batch: dict[str, np.ndarray]) -> int:
    """Texts in a packed batch."""
    return int(batch["segments"].max(axis=1).sum())
