"""A checked request: prompts as tokens, their prefixes, limits, buckets, batches."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt32
from transformers import PreTrainedTokenizerBase

from prefix_jax.checks import Seed, check
from prefix_jax.config import DecodeConfig
from prefix_jax.data.tokens import check_several, encode_texts
from prefix_jax.decoding.context import unrolled
from prefix_jax.decoding.program import Method, write
from prefix_jax.decoding.stops import stop_table
from prefix_jax.errors import InputError
from prefix_jax.mesh import (
    by_prompts,
    check_axes,
    on_host,
    put,
    put_prompts,
    shared_rows,
)
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV, check_prefix_ids
from prefix_jax.model.shape import Shape

SHORTEST_BUCKET = 16
"""Prompts are padded to this or the next power of two: a program for each, no more."""

Prompt = str | Sequence[int] | Int[np.ndarray, "_"]


_unrolled = jax.jit(unrolled)


@dataclasses.dataclass(frozen=True)
class Generated:
    """One text that was written after a prompt."""

    text: str
    """Without the prompt, the end token, and all from a stop string on."""
    tokens: tuple[int, ...]
    """As written, the end token included."""
    log_prob: float
    """Of those tokens after the prompt, under the model itself, in nats."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked request."""

    backbone: Backbone
    """Unrolled, once for all batches: each program would copy its weights to do so."""
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    prefix: KV | None
    prefix_ids: np.ndarray | None
    seeds: UInt32[np.ndarray, "N 2"]
    """A key for each prompt comes of it: what it draws depends on no other."""
    decode: DecodeConfig
    method: Method
    stops: jax.Array | None
    mesh: Mesh | None = None
    """Whose devices share the rows of a batch."""

    @classmethod
    def make(
        cls,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        prefix: KV | None,
        prefix_ids: Sequence[int] | Int[np.ndarray, "_"] | None,
        decode: DecodeConfig,
        seeds: Sequence[int | None] | None = None,
        mesh: Mesh | None = None,
    ) -> "Request":
        """Raises InputError as `generate` says."""
        check_axes(mesh)
        ids = _encode(prompts, tokenizer, backbone.config.vocab_size)
        chosen = check_prefix_ids(prefix, prefix_ids, len(ids))
        _check_room(ids, prompts, prefix, chosen, backbone, decode)
        vocabulary = backbone.config.vocab_size
        method = _method(decode, tokenizer, backbone.config)
        stops = None
        if decode.stop:
            stops = jnp.asarray(stop_table(decode.stop, tokenizer, vocabulary))
        if prefix is not None:
            prefix = prefix.cast(backbone.dtype, rows=1)
        if prefix is None or prefix.number == 1:
            chosen = None
        backbone = _unrolled(backbone)
        if mesh is not None:
            backbone, prefix, stops = put((backbone, prefix, stops), mesh)
        return cls(
            backbone,
            tokenizer,
            ids,
            prefix,
            chosen,
            _check_seeds(seeds, len(ids), decode),
            decode,
            method,
            stops,
            mesh,
        )

    def batches(self, among: int | None = None) -> Iterator[list[int]]:
        """Numbers of the prompts decoded together: like lengths, for less padding.

        They are alike among the prompts of so many batches, or among all.
        """
        whole, size = len(self.prompts), self.decode.batch_size
        stretch = max(whole, 1) if among is None else size * among
        for first in range(0, whole, stretch):
            numbers = range(first, min(first + stretch, whole))
            order = sorted(numbers, key=lambda i: len(self.prompts[i]))
            for start in range(0, len(order), size):
                yield order[start : start + size]

    def inputs(self, batch: list[int]) -> dict:
        """What the compiled programs take for these prompts."""
        # A small request is not padded to a whole batch, nor compiled for its size.
        rows = min(self.decode.batch_size, _power_of_two(len(self.prompts), 1))
        rows = shared_rows(rows, self.mesh)
        tokens, mask = _pad_left([self.prompts[i] for i in batch], rows)
        prefix = self.prefix
        if prefix is not None and self.prefix_ids is not None:
            ids = np.zeros(rows, np.int32)
            ids[: len(batch)] = self.prefix_ids[batch]
            prefix = _selection(self.mesh)(prefix, ids)
        seeds = np.zeros((rows, 2), np.uint32)
        seeds[: len(batch)] = self.seeds[batch]
        arrays = {"tokens": tokens, "mask": mask, "seeds": seeds}
        if self.mesh is None:
            placed = jax.tree.map(jnp.asarray, arrays)
        else:
            placed = put_prompts(arrays, self.mesh)
        return {"prefix": prefix, "stops": self.stops, **placed}

    def each(self, among: int) -> Iterator[list[Generated]]:
        """Every prompt's texts in the prompts' order, as soon as they are there."""
        done, following = dict[int, list[Generated]](), 0
        for batch in self.batches(among):
            done |= zip(batch, self.write(batch), strict=True)
            while following in done:
                yield done.pop(following)
                following += 1

    def write(self, batch: list[int]) -> Iterator[list[Generated]]:
        """The texts of these prompts."""
        inputs = self.inputs(batch)
        out = write(self.backbone, **inputs, method=self.method, mesh=self.mesh)
        tokens, lengths, log_probs = on_host(out)
        for row in range(len(batch)):
            yield [
                self._generated(
                    tokens[row, i, : lengths[row, i]], float(log_probs[row, i])
                )
                for i in range(self.decode.sequences)
            ]

    def _generated(self, tokens, log_prob):
        return Generated(self._text(tokens), tuple(tokens.tolist()), log_prob)

    def _text(self, tokens) -> str:
        if len(tokens) and int(tokens[-1]) in self.method.rules.end:
            tokens = tokens[:-1]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        found = [text.find(stop) for stop in self.decode.stop if stop in text]
        return text[: min(found)] if found else text

    def text_so_far(self, state) -> tuple[str, bool]:
        """The first sequence of a sampling state, and whether it is finished."""
        tokens = np.asarray(state.tokens[0, 0, : int(state.lengths[0, 0])])
        full = int(state.number) >= self.decode.max_new_tokens
        return self._text(tokens), bool(state.done[0, 0]) or full

    def certain(self, text: str) -> str:
        """What of an unfinished text can no longer change."""
        text = text.rstrip("\ufffd")
        for stop in self.decode.stop:
            for length in range(min(len(stop), len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    text = text[:-length]
                    break
        return text


def _encode(prompts, tokenizer, vocabulary) -> list[list[int]]:
    check_several("prompts", prompts)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(encode_texts(texts, tokenizer))
    found = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            prompt = next(encoded)
        tokens = np.asarray(prompt)
        if tokens.size and (
            tokens.ndim != 1
            or not np.issubdtype(tokens.dtype, np.integer)
            or tokens.min() < 0
            or tokens.max() >= vocabulary
        ):
            raise InputError(
                f"prompts[{number}] is {prompt!r}; expected a text, or tokens of the "
                f"backbone: whole numbers from 0 to {vocabulary - 1}"
            )
        found.append(tokens.tolist())
    return found


def _method(decode: DecodeConfig, tokenizer, config: Shape) -> Method:
    end, vocabulary = decode.end_tokens, config.vocab_size
    if end is None:
        own = tokenizer.eos_token_id
        if own is not None and own >= vocabulary:
            raise InputError(
                f"the tokenizer ends a text with {tokenizer.eos_token!r}, token {own}; "
                f"the backbone's tokens are 0 to {vocabulary - 1}: give the tokenizer "
                "that the backbone was trained with, or say decode.end_tokens"
            )
        # A prefix has learned to write the first; the backbone may know others.
        ends = config.end_tokens if own is None else (own, *config.end_tokens)
        end = tuple(dict.fromkeys(ends))
    for name, tokens in (("end_tokens", end), ("barred_tokens", decode.barred_tokens)):
        unknown = [token for token in tokens if not 0 <= token < vocabulary]
        if unknown:
            raise InputError(
                f"decode.{name} has {unknown[0]}; the backbone's tokens are 0 to "
                f"{vocabulary - 1}"
            )
    return Method.of(decode, end)


def _power_of_two(number: int, least: int) -> int:
    return max(least, 1 << (number - 1).bit_length())


@functools.cache
def _selection(mesh: Mesh | None):
    """`KV.select`, whose prefixes lie where their rows are."""
    where = None if mesh is None else by_prompts(mesh, axis=1)
    return jax.jit(KV.select, out_shardings=where)


def padded_length(longest: int) -> int:
    """Tokens that a batch of prompts is padded to."""
    return _power_of_two(longest, SHORTEST_BUCKET)


def _pad_left(ids, rows):
    """Tokens and mask [rows T]; rows that only fill the batch are all mask."""
    length = padded_length(max(len(row) for row in ids))
    tokens = np.zeros((rows, length), np.int32)
    mask = np.zeros((rows, length), bool)
    for i, row in enumerate(ids):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    return tokens, mask


def _check_seeds(
    seeds: Sequence[int | None] | None, number: int, decode: DecodeConfig
) -> UInt32[np.ndarray, "N 2"]:
    """A seed for each prompt, and which of that seed's keys is the prompt's.

    The first of its own seed, or else the one of `decode.seed` that has its number.
    """
    if seeds is None:
        seeds = [None] * number
    elif decode.method != "sample":
        raise InputError(
            f'seeds were given but decode.method is "{decode.method}"; they are for '
            '"sample" only'
        )
    if len(seeds) != number:
        raise InputError(
            f"there are {len(seeds)} seeds for {number} prompts; give one for each, "
            "None where decode.seed is to hold"
        )
    for i, seed in enumerate(seeds):
        check(f"seeds[{i}]", seed, Seed | None)
    pairs = [
        (decode.seed, i) if seed is None else (seed, 0) for i, seed in enumerate(seeds)
    ]
    return np.array(pairs, np.uint32).reshape(-1, 2)


def _check_room(ids, prompts, prefix, prefix_ids, backbone, decode):
    offsets = np.zeros(1, int)
    if prefix is not None:
        offsets = np.broadcast_to(np.asarray(prefix.offsets), prefix.number)
    limit = backbone.config.n_positions
    for number, row in enumerate(ids):
        if not row:
            raise InputError(
                f"prompts[{number}] ({prompts[number]!r}) is empty; give at least a "
                "token"
            )
        offset = int(offsets[prefix_ids[number]])
        backbone.config.check_room(offset, f"prompts[{number}]: the prefix")
        total = offset + len(row) + decode.max_new_tokens
        if total > limit:
            room = limit - offset - len(row)
            lower = f" or lower decode.max_new_tokens to {room}" if room > 0 else ""
            raise InputError(
                f"prompts[{number}]: prefix {offset} + prompt {len(row)} + "
                f"decode.max_new_tokens {decode.max_new_tokens} = {total} exceeds the "
                f"backbone's {limit} positions; shorten the prompt{lower}"
            )
