"""Packed rows are the documents' tokens, in order, whatever the batching."""

import numpy as np
import pytest

from prefix_jax.data import packing
from prefix_jax.data.packing import pack_documents, packed_rows
from prefix_jax.errors import InputError

DOCUMENTS = [
    "The mill by the river is old.",
    "a",
    "Two  blanks \n\n\n three line ends\n and\nothers \n\t\n\nend's\n",
    "東京\n\n🙂 it's <|endoftext|>\r\nold\n" * 7,
]


def stream(tokenizer):
    ids = []
    for document in DOCUMENTS:
        ids += tokenizer(document, split_special_tokens=True)["input_ids"]
        ids.append(tokenizer.eos_token_id)
    return ids


@pytest.mark.parametrize("length", [2, 7, 64])
@pytest.mark.parametrize(("batch", "piece"), [(10**6, 10**5), (1, 1), (20, 5), (50, 9)])
def test_rows_are_the_stream(monkeypatch, tokenizer, length, batch, piece):
    monkeypatch.setattr(packing, "_BATCH", batch)
    monkeypatch.setattr(packing, "_PIECE", piece)
    packed = pack_documents(iter(DOCUMENTS), tokenizer, length)
    expected = stream(tokenizer)
    rows = len(expected) // length
    assert packed.dtype == np.int32
    assert packed.shape == (rows, length)
    assert packed.ravel().tolist() == expected[: rows * length]


def test_rows(tokenizer):
    packed = pack_documents(DOCUMENTS, tokenizer, 16)
    rows = packed_rows(packed)
    assert len(rows) == len(packed)
    assert all(np.shares_memory(row.tokens, packed) for row in rows)
    assert all(row.loss_mask.all() and len(row.loss_mask) == 16 for row in rows)


def test_too_little(tokenizer):
    number = len(stream(tokenizer))
    assert len(pack_documents(DOCUMENTS, tokenizer, number)) == 1
    with pytest.raises(InputError, match=f"{number} tokens"):
        pack_documents(DOCUMENTS, tokenizer, number + 1)
