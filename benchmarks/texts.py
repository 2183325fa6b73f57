"""Texts as rows and packed batches of tokens, the same for every side."""

from collections.abc import Iterator

import numpy as np

import prefix_jax as pj
from prefix_jax.data.bins import Bins, packed_batches
from prefix_jax.data.tasks import load_examples
from prefix_jax.data.tokens import Row, check_vocabulary, encode_examples
from prefix_jax.runs.shapes import backbone_config

LEARNING_RATE = 1e-3


def rows_of(options) -> list[Row]:
    """Some of E2E's training examples, or of random texts, which carry loss throughout.

    So many as `examples`, drawn at random; random texts have `length` tokens.
    """
    rng = np.random.default_rng(0)
    if options.length:
        vocabulary = backbone_config(options.shape).vocab_size
        draw = rng.integers(0, vocabulary, (options.examples, options.length))
        loss_mask = np.arange(options.length) > 0
        return [Row(tokens.astype(np.int32), loss_mask) for tokens in draw]
    config = pj.DataConfig(source="e2e", path=str(options.e2e))
    tokenizer = pj.load_tokenizer(options.tokenizer)
    rows = encode_examples(load_examples(config, "train"), tokenizer, config).rows
    shape = backbone_config(options.shape)
    check_vocabulary(rows, tokenizer, shape.vocab_size, options.shape)
    if options.examples > len(rows):
        raise pj.InputError(f"--examples {options.examples}: there are {len(rows)}")
    return [rows[i] for i in rng.choice(len(rows), options.examples, replace=False)]


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
