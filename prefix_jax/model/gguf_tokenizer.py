"""The tokenizer that a GGUF file describes, by the package `tokenizers` alone.

What transformers makes of such a file needs PyTorch and changes from release to release
(5.17 takes the begin token for the end token). The two kinds here are those of the
families: byte-level (GPT-2's manner: Llama 3, SmolLM2, Qwen) and sentencepiece (Llama
2, Mistral), by llama.cpp's names and rules (llama-vocab.cpp).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    processors,
)
from tokenizers import pre_tokenizers as splits
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from prefix_jax.errors import InputError, shown
from prefix_jax.model.gguf_header import naming_file, read_header

SPACE = "▁"
"""How vocabularies of sentencepiece write a blank."""

_LISTS = "tokens", "token_type", "merges", "scores"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Types of tokens: plain ones, special ones, and plain ones that are found whole
in any text."""

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ENGLISH + r"|\p{N}{1,3}" + _REST
_QWEN2 = _ENGLISH + r"|\p{N}" + _REST


def _by(pattern: str) -> splits.PreTokenizer:
    return splits.Sequence(
        [
            splits.Split(Regex(pattern), "isolated"),
            splits.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_GPT2 = splits.ByteLevel(add_prefix_space=False)
_SPLITS: dict[str, splits.PreTokenizer] = {
    "gpt-2": _GPT2,
    "smollm": splits.Sequence([splits.Digits(individual_digits=True), _GPT2]),
    "llama-bpe": _by(_LLAMA3),
    "llama3": _by(_LLAMA3),
    "llama-v3": _by(_LLAMA3),
    "qwen2": _by(_QWEN2),
    "deepseek-r1-qwen": _by(_QWEN2),
}
"""How text is cut before merging, by `tokenizer.ggml.pre`."""
_WHOLE_FIRST = "llama-bpe", "llama3", "llama-v3"
"""Those of which a piece that is a token is not merged from its letters."""


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file.

    Raises InputError for kinds that are not known here, and damaged files.
    """
    with naming_file(path):
        return _tokenizer(path)


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    names = [f"tokenizer.ggml.{name}" for name in _LISTS]
    values = read_header(path, keep=names).values
    given = {
        name.removeprefix("tokenizer.ggml."): value
        for name, value in values.items()
        if name.startswith("tokenizer.ggml.")
    }
    tokens: list[str] = _list(given, "tokens", str)
    if len(set(tokens)) < len(tokens):
        raise InputError("tokenizer.ggml.tokens has a token twice")
    types = [_NORMAL] * len(tokens)
    if "token_type" in given:
        types = _list(given, "token_type", int, len(tokens))
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = given.get("model")
    if kind not in kinds:
        raise InputError(
            f"tokenizer.ggml.model is {shown(kind)}; expected {' or '.join(kinds)}"
        )
    if given.get("eos_token_id") is None:
        raise InputError(
            "it has no tokenizer.ggml.eos_token_id, the token that ends a text; mend "
            "the file's metadata"
        )
    backend = kinds[kind](tokens, given)
    for number, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        found = [x for x, own in zip(tokens, types, strict=True) if own == number]
        added = [AddedToken(x, normalized=False, special=special) for x in found]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    _add_ends(backend, tokens, given)
    roles: dict[str, Any] = {
        f"{role}_token": _named(tokens, given, key)
        for role, key in (
            ("bos", "bos_token_id"),
            ("eos", "eos_token_id"),
            ("unk", "unknown_token_id"),
            ("pad", "padding_token_id"),
        )
        if given.get(key) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles
    )


def _add_ends(backend: Tokenizer, tokens: Sequence[str], given: dict[str, Any]) -> None:
    """Where special tokens are asked for: what begins and ends a text."""
    usual = given["model"] == "llama" or given.get("pre") in _WHOLE_FIRST
    ends = []
    for role, is_usual in (("bos", usual), ("eos", False)):
        key = f"{role}_token_id"
        wanted = given.get(f"add_{role}_token", is_usual) and given.get(key) is not None
        ends.append([_named(tokens, given, key)] if wanted else [])
    begin, end = ends
    if begin or end:
        backend.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *begin, "$B", *end],
            special_tokens=[(one, tokens.index(one)) for one in {*begin, *end}],
        )


def _named(tokens: Sequence[str], given: dict[str, Any], key: str) -> str:
    number: int = given[key]
    if number not in range(len(tokens)):
        raise InputError(
            f"tokenizer.ggml.{key} is {shown(number)}, but there are {len(tokens)} "
            "tokens; mend the file's metadata"
        )
    return tokens[number]


def _byte_level(tokens: Sequence[str], given: dict[str, Any]) -> Tokenizer:
    cut = given.get("pre")
    if cut not in _SPLITS:
        said = "missing" if cut is None else shown(cut)
        raise InputError(
            f"tokenizer.ggml.pre, the way to cut text before merging, is {said}; known "
            f"here are {', '.join(_SPLITS)}"
        )
    backend = Tokenizer(_bpe(tokens, _merges(given), ignore_merges=cut in _WHOLE_FIRST))
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _SPLITS[cut]
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(tokens: Sequence[str], given: dict[str, Any]) -> Tokenizer:
    if "merges" in given:
        pairs = _merges(given)
    else:
        pairs = _pairs(tokens, _list(given, "scores", float, len(tokens)))
    unknown = given.get("unknown_token_id")
    named = None if unknown is None else _named(tokens, given, "unknown_token_id")
    backend = Tokenizer(
        _bpe(tokens, pairs, unk_token=named, fuse_unk=True, byte_fallback=True)
    )
    first = given.get("add_space_prefix", True)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE)] * bool(first) + [normalizers.Replace(" ", SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)] * bool(first)
    )
    return backend


def _bpe(tokens: Sequence[str], merges: list[tuple[str, str]], **more: Any) -> BPE:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    for pair in merges:
        if not {*pair, "".join(pair)} <= vocabulary.keys():
            raise InputError(f"it merges {shown(' '.join(pair))}, which is no token")
    return BPE(vocab=vocabulary, merges=merges, **more)


def _merges(given: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [merge.partition(" ") for merge in _list(given, "merges", str)]
    return [(one, other) for one, _, other in pairs]


def _pairs(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges that make the tokens of a vocabulary that has none, the likeliest first.

    A token is made of any two others that it could be cut into; of those the pair of
    the earlier tokens is merged first.
    """
    number = {token: index for index, token in enumerate(tokens)}
    made: list[tuple[float, tuple[str, str]]] = []
    for token, score in zip(tokens, scores, strict=True):
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in parts if pair[0] in number and pair[1] in number]
        known.sort(key=lambda pair: (number[pair[0]], number[pair[1]]))
        made += [(score, pair) for pair in known]
    made.sort(key=lambda one: -one[0])
    return [pair for _, pair in made]


def _list(
    given: dict[str, Any], name: str, kind: type, length: int | None = None
) -> list[Any]:
    """A list of the file's metadata, of such values and, where it is said, so many."""
    values = given.get(name)
    if not isinstance(values, list) or not all(isinstance(x, kind) for x in values):
        raise InputError(f"tokenizer.ggml.{name} is no list of {kind.__name__}")
    if length is not None and len(values) != length:
        raise InputError(
            f"tokenizer.ggml.{name} has {len(values)} entries for {length} tokens"
        )
    return values
