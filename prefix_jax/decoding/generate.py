"""From prompts to texts: buckets, batches, limits; the device loop is `greedy`."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.greedy import greedy
from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV

PROMPT_BUCKET = 32
"""Prompts are padded to a multiple of this; each multiple is one compiled program."""


def generate(
    backbone: GPT2,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int] | Int[np.ndarray, "_"]],
    *,
    prefix: KV | None = None,
    decode: DecodeConfig = DecodeConfig(),
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """What the backbone, with the prefix, writes after each prompt.

    Prompts are texts, taken literally, or token ids (as `data.encode_prompts` makes
    them in the format a task was trained with). The prompt and the end token are not
    part of the result. `progress` hears the number of prompts done.
    Raises InputError if prefix + prompt + new tokens exceed the backbone's positions.
    """
    ids = [
        tokenizer.encode(prompt, add_special_tokens=False)
        if isinstance(prompt, str)
        else list(prompt)
        for prompt in prompts
    ]
    if not ids:
        return []
    _check(ids, prompts, prefix, backbone, decode)
    end = tokenizer.eos_token_id
    if prefix is not None:
        if prefix.keys.shape[1] != 1:
            raise InputError(
                f"the prefix has N = {prefix.keys.shape[1]}; generate takes one prefix "
                "for all prompts (N = 1)"
            )
        prefix = prefix.cast(backbone.dtype, rows=1)
    # Prompts of like length together: less padding, and fewer compiled programs.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(ids)
    rows = min(decode.batch_size, len(ids))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        tokens, mask = _pad_left([ids[i] for i in chosen], rows)
        out = greedy(
            backbone,
            prefix,
            jnp.asarray(tokens),
            jnp.asarray(mask),
            max_new_tokens=decode.max_new_tokens,
            end=end,
        )
        written = tokenizer.batch_decode(
            [_until(row, end) for row in np.asarray(out)], skip_special_tokens=True
        )
        for i, text in zip(chosen, written, strict=False):
            texts[i] = text
        progress(len(chosen))
    return texts


def _pad_left(ids, rows):
    longest = max(len(row) for row in ids)
    length = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens = np.zeros((rows, length), np.int32)
    mask = np.zeros((rows, length), bool)
    for i, row in enumerate(ids):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    mask[len(ids) :, -1] = True  # rows that only fill the batch read one token
    return tokens, mask


def _until(row, end):
    found = np.flatnonzero(row == end)
    return row[: found[0]] if len(found) else row


def _check(ids, prompts, prefix, backbone, decode):
    offset = 0 if prefix is None else prefix.position_offset
    limit = backbone.config.n_positions
    for number, row in enumerate(ids):
        if not row:
            raise InputError(
                f"prompt {number} ({prompts[number]!r}) is empty; give at least a token"
            )
        total = offset + len(row) + decode.max_new_tokens
        if total > limit:
            raise InputError(
                f"prompt {number}: prefix {offset} + prompt {len(row)} + "
                f"decode.max_new_tokens {decode.max_new_tokens} = {total} exceeds the "
                f"backbone's {limit} positions; shorten the prompt or lower "
                f"decode.max_new_tokens by {total - limit}"
            )
