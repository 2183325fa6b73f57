"""Tokenizers that GGUF files describe, byte-level ones and sentencepiece."""

import re
import sys

import gguf
import pytest

from prefix_jax.errors import InputError
from prefix_jax.model import gguf_tokenizer
from prefix_jax.model.loading import load_tokenizer


def with_tokenizer(path, tokens, *, kind="gpt2", end=1, merges=None, **more):
    """A file that has a tokenizer and no model; the first two tokens are special."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_tokenizer_model(kind)
    out.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL] * 2
    out.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    if merges is not None:
        out.add_token_merges(merges)
    if pre := more.get("pre", "gpt-2"):
        out.add_tokenizer_pre(pre)
    for role, wanted in zip(("bos", "eos"), more.get("add", ()), strict=False):
        getattr(out, f"add_add_{role}_token")(wanted)
    if "scores" in more:
        out.add_token_scores(more["scores"])
        out.add_unk_token_id(2)
    out.add_bos_token_id(0)
    out.add_eos_token_id(end)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


BYTES = ["<begin>", "<end>", "a", "b", "ab", "Ġ", "Ġab", "1", "2", "12"]
MERGES = ["a b", "Ġ ab", "1 2"]


@pytest.mark.parametrize(
    ("pre", "twelve"), [("gpt-2", [9]), ("llama-bpe", [9]), ("smollm", [7, 8])]
)
def test_a_byte_level_tokenizer(tmp_path, monkeypatch, pre, twelve):
    """Digits are merged or not as the file's `pre` says; PyTorch is not asked for."""
    monkeypatch.setitem(sys.modules, "torch", None)
    path = with_tokenizer(tmp_path / "a.gguf", BYTES, merges=MERGES, pre=pre)
    tokenizer = load_tokenizer(path)
    ids = tokenizer("ab ab12<end>", add_special_tokens=False).input_ids
    assert ids == [4, 6, *twelve, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab ab12"
    # transformers 5.17 takes the begin token for the end token.
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<begin>", "<end>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


@pytest.mark.parametrize(("pre", "ids"), [("gpt-2", [2, 3]), ("llama-bpe", [4])])
def test_tokens_that_nothing_is_merged_to(tmp_path, pre, ids):
    """Llama 3's are found whole, as llama.cpp does."""
    tokens = [*BYTES[:5], "ba"]
    path = with_tokenizer(tmp_path / "a.gguf", tokens, merges=["b a"], pre=pre)
    tokenizer = load_tokenizer(path)
    assert tokenizer("ab", add_special_tokens=False).input_ids == ids


CUTS = {
    "gpt-2": ["it", "'", "S", "Ġ1234", "!", "Ċ", "Ċ", "x"],
    "smollm": ["it", "'", "S", "Ġ", "1", "2", "3", "4", "!", "Ċ", "Ċ", "x"],
    "llama-bpe": ["it", "'S", "Ġ", "123", "4", "!ĊĊ", "x"],
    "qwen2": ["it", "'S", "Ġ", "1", "2", "3", "4", "!ĊĊ", "x"],
}
"""What "it'S 1234!\\n\\nx" is cut into, by the patterns in the models' own files."""


@pytest.mark.parametrize("pre", CUTS)
def test_how_text_is_cut(pre):
    found = gguf_tokenizer._SPLITS[pre].pre_tokenize_str("it'S 1234!\n\nx")
    assert [piece for piece, _ in found] == CUTS[pre]


LETTERS = ["<begin>", "<end>", "e", "Ì", "ģ", "Ã", "©", "Ã©"]
"""Of the bytes of e, of an acute accent, and of é."""


def test_qwen_composes_letters_first(tmp_path):
    """As its own tokenizer does (NFC): two ways to write one letter are one text."""
    for pre, same in (("qwen2", True), ("gpt-2", False)):
        path = with_tokenizer(
            tmp_path / f"{pre}.gguf", LETTERS, merges=["Ã ©"], pre=pre
        )
        tokenizer = load_tokenizer(path)
        one, two = tokenizer(["e\u0301", "\u00e9"], add_special_tokens=False).input_ids
        assert (one == two) == same


@pytest.mark.parametrize(
    ("more", "ids"),
    [
        ({"pre": "gpt-2"}, [4]),
        ({"pre": "llama-bpe"}, [0, 4]),
        ({"pre": "llama-bpe", "add": (False, True)}, [4, 1]),
        ({"pre": "gpt-2", "add": (True, True)}, [0, 4, 1]),
    ],
    ids=str,
)
def test_begin_and_end_where_they_are_asked_for(tmp_path, more, ids):
    path = with_tokenizer(tmp_path / "a.gguf", BYTES, merges=MERGES, **more)
    tokenizer = load_tokenizer(path)
    assert tokenizer("ab").input_ids == ids
    assert tokenizer("ab", add_special_tokens=False).input_ids == [4]


PIECES = ["<s>", "</s>", "<unk>", "<0x0A>", "▁", "a", "b", "ab", "▁a", "▁ab"]
SCORES = [0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -2.0, -3.0, -1.0]


def test_a_sentencepiece_tokenizer(tmp_path):
    """Its merges follow from the scores; unknown bytes are written as bytes."""
    path = with_tokenizer(tmp_path / "a.gguf", PIECES, kind="llama", scores=SCORES)
    tokenizer = load_tokenizer(path)
    ids = tokenizer("ab a\nb").input_ids
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names == ["<s>", "▁ab", "▁a", "<0x0A>", "b"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab a\nb"
    assert tokenizer("x").input_ids == [0, 4, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"pre": "mine"},
            "tokenizer.ggml.pre, the way to cut text before merging, is 'mi",
        ),
        ({"pre": None}, "merging, is missing; known here are gpt-2, "),
        ({"kind": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"end": 99}, "eos_token_id is 99, but there are 10 tokens"),
        ({"merges": ["a 1"]}, "it merges 'a 1', which is no token"),
        ({"merges": ["ab"]}, "it merges 'ab ', which is no token"),
        ({"kind": "llama"}, "tokenizer.ggml.scores is no list"),
        ({"tokens": [*BYTES, "a"]}, "has a token twice"),
    ],
)
def test_a_tokenizer_that_cannot_be_made(tmp_path, more, message):
    given = {"tokens": BYTES, "merges": MERGES} | more
    if more.get("kind") == "llama":
        given["merges"] = None
    path = with_tokenizer(tmp_path / "a.gguf", **given)
    with pytest.raises(InputError, match=re.escape(message)):
        load_tokenizer(path)
