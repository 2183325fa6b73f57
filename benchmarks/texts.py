"""E2E's training examples as rows and packed batches of tokens, for every side."""

from collections.abc import Iterator

import numpy as np

import prefix_jax as pj
from prefix_jax.data.bins import Bins, packed_batches
from prefix_jax.data.tasks import load_examples
from prefix_jax.data.tokens import Row, encode_examples

LEARNING_RATE = 1e-3


def rows_of(options) -> list[Row]:
    """All training examples."""
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
