"""Documents packed into rows of one length, for language modelling."""

import re
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerFast

from prefix_jax.data.tokens import Row, encode_texts, end_token
from prefix_jax.errors import InputError

_BATCH = 1_000_000  # characters tokenised at a time
_PIECE = 50_000  # characters after which a longer document is cut, for the same reason

# GPT-2's pattern starts a new word at the last blank of a run, so that text that is cut
# before a line end with a word behind it gives the same tokens.
_CUT = re.compile(r"\n(?=\S)")


def pack_documents(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int
) -> Int32[np.ndarray, "N T"]:
    """Rows of `length` tokens cut from the documents in order, each followed by eos.

    The last tokens, fewer than `length`, are left out. Text is read as it comes; 4
    bytes a token are kept. Raises InputError where there is not one whole row.
    """
    rows = [np.zeros((0, length), np.int32)]
    rest = np.zeros(0, np.int32)
    for tokens in _token_stream(documents, tokenizer):
        rest = np.concatenate([rest, tokens])
        whole = len(rest) // length * length
        rows.append(rest[:whole].reshape(-1, length))
        rest = rest[whole:]
    packed = np.concatenate(rows)
    if not len(packed):
        raise InputError(
            f"the documents have {len(rest)} tokens with their ends, fewer than one "
            f"row of {length}; give more text or lower data.max_length"
        )
    return packed


def packed_rows(packed: Int32[np.ndarray, "N T"]) -> list[Row]:
    """Packed tokens as Rows with loss on every token, without copying them."""
    loss_mask = np.ones(packed.shape[1], bool)
    return [Row(tokens, loss_mask) for tokens in packed]


def _token_stream(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[Int32[np.ndarray, "_"]]:
    """Tokens of all documents in order with eos after each, a batch of text a time."""
    end = np.array([end_token(tokenizer)], np.int32)
    pieces: list[str] = []
    ends: list[bool] = []
    size = 0

    def tokens() -> Int32[np.ndarray, "_"]:
        parts: list[np.ndarray] = []
        for encoded, is_last in zip(encode_texts(pieces, tokenizer), ends, strict=True):
            parts += [encoded, end] if is_last else [encoded]
        return np.concatenate(parts)

    for document in documents:
        start = 0
        while start < len(document):
            cut = _CUT.search(document, start + _PIECE)
            stop = cut.start() if cut else len(document)
            pieces.append(document[start:stop])
            ends.append(stop == len(document))
            size += stop - start
            start = stop
            if size >= _BATCH:
                yield tokens()
                pieces, ends, size = [], [], 0
    if pieces:
        yield tokens()
