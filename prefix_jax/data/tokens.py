"""Rows of tokens from examples, and prompts from sources."""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32
from transformers import PreTrainedTokenizerFast

from prefix_jax.data.sources import has_lone_surrogate
from prefix_jax.data.tasks import Example
from prefix_jax.data_config import SHORTEST_ROW, DataConfig, label_words
from prefix_jax.errors import InputError
from prefix_jax.model.gguf_tokenizer import SPACE
from prefix_jax.model.loading import END, leading_blank

_TEXTS_AT_A_TIME = 2000
"""The tokenizer keeps some 100 bytes a token until a call returns."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One training sequence: " {source}", separator, " {target}", end.

    The separator is one token, as `DataConfig.separator` says, or the tokenizer's bos;
    the end is its eos. A target that was cut short has
    no end token: the model should not learn to stop there. Nor has the label of a
    class, of which nothing but its words is scored.
    """

    tokens: Int32[np.ndarray, "T"]
    loss_mask: Bool[np.ndarray, "T"]
    """True on the tokens to be predicted: target and end."""
    prefix: str | None = None
    """Name of the prefix to read it with, as the example's."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the pairs of source and reference: `rows + dropped` is all."""

    rows: int
    dropped: int
    truncated_sources: int
    """Rows whose source was cut at its end to fit; so for the next."""
    truncated_targets: int
    longest: int
    """Tokens of the longest row as kept."""
    longest_given: int
    """Tokens of the longest pair as given."""
    tokens: int
    """Tokens of all rows."""
    target_tokens: int
    """Those of them that carry loss."""
    blank_sources: int
    """Rows whose source has no text: the target is learned from nothing."""

    def __str__(self) -> str:
        blank = f", {self.blank_sources:,} without a source" * bool(self.blank_sources)
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens "
            f"({self.target_tokens:,} to predict){blank}, longest {self.longest}; "
            f"{self.truncated_sources:,} sources and {self.truncated_targets:,} "
            f"targets cut short, {self.dropped:,} pairs dropped (longest given "
            f"{self.longest_given})"
        )


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Rows in the order of the examples and their references, and a report."""

    rows: tuple[Row, ...]
    examples: tuple[Example, ...]
    """Those that have a row: all, but with `drop`."""
    report: Report


def check_vocabulary(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    backbone: str,
) -> None:
    """InputError for a token that the backbone has not: its numbers would be none."""
    for row in rows:
        token = int(row.tokens.max(initial=0))
        if token >= vocab_size:
            name = tokenizer.convert_ids_to_tokens(token)
            raise InputError(
                f"the tokenizer writes {name!r} as token {token}, but {backbone}'s are "
                f"0 to {vocab_size - 1}; use the tokenizer that the backbone was "
                "trained with, without added tokens"
            )


def check_several(name: str, texts: Sequence) -> None:
    """InputError for one text, whose letters would be taken for texts."""
    if isinstance(texts, str):
        raise InputError(
            f"{name} is one text, {texts!r}; give a list of them, [{texts!r}]"
        )


def text_room(
    max_length: int, *, positions: int, prefix_length: int, backbone: str
) -> int:
    """Positions that a backbone leaves for text: `positions - prefix_length`.

    `prefix_length` counts prefix positions that shift the text (0 when unshifted).
    Raises InputError where rows of `max_length` tokens would not fit.
    """
    room = positions - prefix_length
    if room < SHORTEST_ROW:
        raise InputError(
            f"prefix length {prefix_length} leaves {max(room, 0)} of {backbone}'s "
            f"{positions} positions, fewer than the {SHORTEST_ROW} that a row needs; "
            "lower prefix.length"
        )
    if max_length > room:
        raise InputError(
            f"prefix length {prefix_length} + max_length {max_length} = "
            f"{prefix_length + max_length} exceeds {backbone}'s {positions} positions; "
            f"lower data.max_length to {room}"
        )
    return room


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
) -> Encoded:
    """One Row per example and reference, no longer than `config.max_length`.

    Over-long pairs are handled as `config.overflow` says: `truncate_source` cuts the
    source's end, and the target's where it alone is too long; `drop` leaves the pair
    out. Raises InputError for over-long pairs with `error`, and where no row is left.
    Whether rows fit the backbone is `text_room`'s business.
    """
    if not examples:
        raise InputError("there are no examples to encode; expected at least one")
    separator = separator_token(tokenizer, config.separator)
    eos = end_token(tokenizer)
    classes = config.task == "classification"
    if classes:
        encode_labels([*label_words(config.labels).values()], tokenizer)  # checks them
    sources = _encode_distinct([example.source for example in examples], tokenizer)
    pairs = [(e.source, text, e.prefix) for e in examples for text in e.references]
    owners = [i for i, e in enumerate(examples) for _ in e.references]
    kept: dict[int, Example] = {}
    targets = _encode_distinct([text for _, text, _ in pairs], tokenizer)

    most = config.max_length - 2  # tokens of source and target together
    most_target = min(most, config.max_target_length or most)
    rows: list[Row] = []
    over: list[int] = []  # numbers of the pairs that are too long
    truncated_sources = truncated_targets = longest_given = blank_sources = 0
    for number, (source_text, target_text, prefix) in enumerate(pairs):
        source, target = sources[source_text], targets[target_text]
        end = [] if classes else [eos]
        longest_given = max(longest_given, len(source) + len(target) + 2)
        if len(source) + len(target) > most or len(target) > most_target:
            over.append(number)
            if config.overflow != "truncate_source":
                continue
        if len(target) > most_target:
            target, end = target[:most_target], []
            truncated_targets += 1
        if len(source) + len(target) > most:
            source = source[: most - len(target)]
            truncated_sources += 1
        tokens = np.concatenate([source, [separator], target, end]).astype(np.int32)
        blank_sources += not source_text.strip()
        rows.append(Row(tokens, np.arange(len(tokens)) > len(source), prefix))
        kept[owners[number]] = examples[owners[number]]

    if over and (config.overflow == "error" or not rows):
        limits = f"data.max_length {config.max_length}"
        if config.max_target_length:
            limits += f" or data.max_target_length {config.max_target_length}"
        raise InputError(
            f"{len(over)} of {len(pairs)} pairs are longer than {limits} (the longest "
            f'has {longest_given} tokens), the first with the source "'
            f'{textwrap.shorten(pairs[over[0]][0], 80)}"; raise the limit, or set '
            'data.overflow to "truncate_source"'
        )
    report = Report(
        rows=len(rows),
        dropped=len(pairs) - len(rows),
        truncated_sources=truncated_sources,
        truncated_targets=truncated_targets,
        longest=max(len(row.tokens) for row in rows),
        longest_given=longest_given,
        tokens=sum(len(row.tokens) for row in rows),
        target_tokens=sum(int(row.loss_mask.sum()) for row in rows),
        blank_sources=blank_sources,
    )
    return Encoded(tuple(rows), tuple(kept.values()), report)


def encode_labels(
    words: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> list[Int32[np.ndarray, "_"]]:
    """Tokens of " {words}" for each class, as they stand in a Row.

    Raises InputError where the tokens of one begin with those of another: the shorter
    would be the likelier after any text.
    """
    blank = leading_blank(tokenizer)
    encoded = encode_texts([f"{blank}{one}" for one in words], tokenizer)
    for one, tokens in zip(words, encoded, strict=True):
        for other, longer in zip(words, encoded, strict=True):
            if one != other and longer[: len(tokens)].tolist() == tokens.tolist():
                raise InputError(
                    f'data.labels: the tokens of "{other}" begin with all of '
                    f'"{one}", which would be the likelier after any text; choose '
                    "other words for one of them"
                )
    return encoded


def encode_prompts(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    separator: str | None = None,
) -> list[Int32[np.ndarray, "_"]]:
    """What stands before the target in a Row: " {source}" and the separator.

    It is what a prefix that was trained for a task expects, and `generate` takes it: a
    text alone would be continued. `separator` is `DataConfig.separator` of the training
    (None: the tokenizer's bos, a token that no text can name). Prompts are never cut;
    `truncate_prompts` does that. Raises InputError as `separator_token`.
    """
    check_several("sources", sources)
    token = np.int32(separator_token(tokenizer, separator))
    encoded = _encode_distinct(sources, tokenizer)
    return [np.append(encoded[source], token) for source in sources]


def truncate_prompts(
    prompts: Sequence[Int32[np.ndarray, "_"]], room: int
) -> tuple[list[Int32[np.ndarray, "_"]], int]:
    """Prompts of at most `room` tokens, and how many were cut to be so.

    A source loses its end, as in `encode_examples`; the separator stays.
    """
    if room < 1:
        raise InputError(
            f"{room} positions are left for the prompt; expected 1 or more: lower "
            "decode.max_new_tokens"
        )
    cut = [
        prompt
        if len(prompt) <= room
        else np.concatenate([prompt[: room - 1], prompt[-1:]])
        for prompt in prompts
    ]
    return cut, sum(len(prompt) > room for prompt in prompts)


def separator_token(
    tokenizer: PreTrainedTokenizerFast, separator: str | None = None
) -> int:
    """Id of the token between source and target: of `separator`, or None: the bos.

    Raises InputError where a separator is not exactly one token.
    """
    if separator is None:
        return _special(tokenizer, "bos_token")
    (tokens,) = encode_texts([separator], tokenizer)
    if not leading_blank(tokenizer):
        names = tokenizer.convert_ids_to_tokens(tokens[:1].tolist())
        tokens = tokens[names == [SPACE] :]  # which is not of the separator
    if len(tokens) != 1:
        raise InputError(
            f"data.separator {separator!r} is {len(tokens)} tokens to this tokenizer; "
            "expected text of one, such as a line break, or None for its begin token"
        )
    return int(tokens[0])


def end_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the tokenizer's eos, which ends a target."""
    return _special(tokenizer, "eos_token")


def _special(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    token = getattr(tokenizer, f"{name}_id")
    if not isinstance(token, int):
        raise InputError(f'the tokenizer has no {name}; set it, for GPT-2 to "{END}"')
    return token


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> list[Int32[np.ndarray, "_"]]:
    """Tokens of each text as it is: nothing added, no special token read out of it.

    Raises InputError for a text with what is no character.
    """
    for text in filter(has_lone_surrogate, texts):
        raise InputError(
            f"{text!a} has what is no character: half of a surrogate pair, or "
            "bytes that are not UTF-8; mend it"
        )
    encoded: list[np.ndarray] = []
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        ids = tokenizer(
            list(texts[start : start + _TEXTS_AT_A_TIME]),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        encoded += [np.array(tokens, np.int32) for tokens in ids]
    return encoded


def _encode_distinct(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> dict[str, Int32[np.ndarray, "_"]]:
    """Tokens of " {text}" for each distinct text."""
    distinct = list(dict.fromkeys(texts))
    blank = leading_blank(tokenizer)
    encoded = encode_texts([f"{blank}{text}" for text in distinct], tokenizer)
    return dict(zip(distinct, encoded, strict=True))
