"""Fixtures of the tests against transformers' PyTorch models, to be made there."""

import numpy as np
import pytest

ROWS, TOKENS, VOCABULARY = 3, 11, 97


def on_one_thread():
    """Matrices this small are slower on more."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def padded_batch():
    """One row whole, one padded on the right, one on the left with its positions."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (ROWS, TOKENS))
    mask = np.ones((ROWS, TOKENS), bool)
    mask[1, -4:] = False
    mask[2, :5] = False
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return tokens, mask, positions
