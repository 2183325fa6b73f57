"""Stop strings inside a compiled loop: an automaton over the tokens' bytes.

A stop string may begin inside one token and end inside another. Aho and Corasick's
automaton reads bytes; a token is a run of bytes, so for every state and token the state
after it can be tabulated: `table[state, token]`. The last state means "found" and is
never left.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from prefix_jax.errors import InputError

START = 0


def stop_table(
    stops: Sequence[str], tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> Int[np.ndarray, "states V"]:
    """The state after each token from each state; the last state is "found".

    `vocab_size` is the model's, which may exceed the tokenizer's: such tokens write
    nothing. Raises InputError for an empty stop string.
    """
    if not all(stops):
        raise InputError("a stop string is empty; every text would end before it began")
    steps = _byte_steps([stop.encode() for stop in stops])
    found = len(steps) - 1
    pieces = token_bytes(tokenizer)
    longest = max(map(len, pieces), default=0)
    # Byte 256 stands for "no byte": the state stays.
    padded = np.full((vocab_size, longest), 256)
    for token, piece in enumerate(pieces[:vocab_size]):
        padded[token, : len(piece)] = list(piece)
    table = np.repeat(np.arange(found + 1)[:, None], vocab_size, 1)
    stay = np.arange(found + 1)[:, None]
    steps = np.concatenate([steps, stay], axis=1)
    for position in range(longest):
        table = steps[table, padded[:, position]]
    return table.astype(np.int32)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes that each token writes; b"" for special tokens.

    Knows byte-level vocabularies (GPT-2's manner) and sentencepiece ones with byte
    tokens such as <0x0A> (Llama's).
    """
    special = set(tokenizer.all_special_tokens)
    entries = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    alphabet = {char: byte for byte, char in bytes_to_unicode().items()}
    byte_level = "Ġ" in "".join(entry or "" for entry in entries)

    def write(entry: str | None) -> bytes:
        if entry is None or entry in special:
            return b""
        if byte_level and all(char in alphabet for char in entry):
            return bytes(alphabet[char] for char in entry)
        if len(entry) == 6 and entry.startswith("<0x") and entry.endswith(">"):
            return bytes([int(entry[3:5], 16)])
        return entry.replace("▁", " ").encode()

    return [write(entry) for entry in entries]


def _byte_steps(stops: Sequence[bytes]) -> Int[np.ndarray, "states 256"]:
    """Aho-Corasick's automaton; every state in which a stop is found is the last."""
    children: list[dict[int, int]] = [{}]
    ends = {START: False}
    for stop in stops:
        state = START
        for byte in stop:
            if byte not in children[state]:
                children.append({})
                ends[len(children) - 1] = False
                children[state][byte] = len(children) - 1
            state = children[state][byte]
        ends[state] = True
    steps = np.zeros((len(children), 256), np.int32)
    fails = {START: START}
    queue = [START]
    for state in queue:
        # Where the longest suffix that is also a beginning of a stop would go.
        fallback = steps[fails[state]].copy() if state != START else steps[START]
        steps[state] = fallback
        for byte, child in children[state].items():
            fails[child] = int(fallback[byte])
            ends[child] |= ends[fails[child]]
            steps[state, byte] = child
            queue.append(child)
    found = len(children)
    steps = np.concatenate([steps, np.full((1, 256), found, np.int32)])
    is_end = np.array([ends[state] for state in range(found)] + [True])
    steps[is_end[steps]] = found
    return steps
