"""Rows say what the contract says, and nothing is cut or dropped uncounted."""

import dataclasses
import itertools

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import (
    encode_examples,
    encode_prompts,
    text_room,
    truncate_prompts,
)
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError
from prefix_jax.model.prefix_start import start_tokens
from prefix_jax.prefix_config import PrefixConfig

WORDS = ["river", "mill", "Café", "old", "<|endoftext|>", "東京"]


def example(source, *targets):
    return Example(source, targets[0], targets)


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)

    def text(most):
        return " ".join(rng.choice(WORDS, rng.integers(1, most)))

    return [
        example(text(8), *(text(8) for _ in range(rng.integers(1, 4))))
        for _ in range(40)
    ]


def plain(tokenizer, text):
    """Tokens by the backend itself, its own way to leave special tokens unread."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return ids


def test_row_layout(tokenizer, examples):
    end = tokenizer.eos_token_id
    encoded = encode_examples(examples, tokenizer, DataConfig())
    pairs = [(e.source, text) for e in examples for text in e.references]
    assert len(pairs) == len(encoded.rows)
    for (source, target), row in zip(pairs, encoded.rows, strict=True):
        prompt = [*plain(tokenizer, f" {source}"), end]
        answer = [*plain(tokenizer, f" {target}"), end]
        assert row.tokens.tolist() == prompt + answer
        assert row.tokens.dtype == np.int32
        assert row.loss_mask.tolist() == [False] * len(prompt) + [True] * len(answer)
        (encoded_prompt,) = encode_prompts([source], tokenizer)
        assert encoded_prompt.tolist() == prompt
        assert encoded_prompt.dtype == np.int32


def test_blank_sources_are_counted(tokenizer):
    given = [example("", "a"), example(" \n", "a", "b"), example("a", "b")]
    report = encode_examples(given, tokenizer, DataConfig()).report
    assert report.blank_sources == 3
    assert "to predict), 3 without a source, longest" in str(report)
    whole = encode_examples(given[2:], tokenizer, DataConfig()).report
    assert whole.blank_sources == 0 and "without" not in str(whole)


def test_another_separator(tokenizer, examples):
    """A text of one token stands where the begin token stood, and there only."""
    usual = encode_examples(examples, tokenizer, DataConfig()).rows
    lines = encode_examples(examples, tokenizer, DataConfig(separator="\n")).rows
    for before, after in zip(usual, lines, strict=True):
        place = before.loss_mask.argmax() - 1
        assert before.loss_mask.tolist() == after.loss_mask.tolist()
        assert np.delete(before.tokens, place).tolist() == (
            np.delete(after.tokens, place).tolist()
        )
        assert tokenizer.decode(after.tokens[place]) == "\n"
    source = examples[0].source
    (prompt,) = encode_prompts([source], tokenizer, "\n")
    assert tokenizer.decode(prompt) == f" {source}\n"
    for many in ("", "two words"):
        with pytest.raises(InputError, match=r"data\.separator .* tokens"):
            encode_prompts([source], tokenizer, many)
    with pytest.raises(InputError, match=r"data\.separator .*language_modelling"):
        DataConfig(task="language_modelling", separator="\n")


@pytest.fixture(scope="module")
def prepending():
    """A tokenizer that puts a blank before every text, as Llama 2's does."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", *"abo", "▁a", "▁b"]
    model = tokenizers.models.BPE(
        {piece: number for number, piece in enumerate(pieces)},
        [("▁", "a"), ("▁", "b")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    normalizers = tokenizers.normalizers
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )


def test_a_blank_comes_first_once(prepending):
    config = DataConfig(separator="\n")
    (row,) = encode_examples([example("a b", "b a")], prepending, config).rows
    names = ["▁a", "▁b", "<0x0A>", "▁b", "▁a", "</s>"]
    assert prepending.convert_ids_to_tokens(row.tokens.tolist()) == names
    labels = DataConfig(task="classification", labels=("0=a", "1=b"))
    (row,) = encode_examples([example("a", "b")], prepending, labels).rows
    names = ["▁a", "<s>", "▁b"]
    assert prepending.convert_ids_to_tokens(row.tokens.tolist()) == names
    words = PrefixConfig(init="labels", labels=("a", "b"), length=4)
    start = start_tokens(words, "labels", prepending, [], 100)
    assert prepending.convert_ids_to_tokens(start) == ["▁a", "▁b"] * 2
    with pytest.raises(InputError, match="2 tokens"):
        encode_prompts(["a"], prepending, "aa")
    with pytest.raises(InputError, match=r"one text, 'a'; give a list"):
        encode_prompts("a", prepending)


def test_text_comes_back(tokenizer, examples):
    """Also a separator that stands in the text itself is text."""
    for row in encode_examples(examples, tokenizer, DataConfig()).rows:
        assert (row.tokens == tokenizer.eos_token_id).sum() == 2


@pytest.mark.parametrize("max_length", [8, 20, 40, 200])
@pytest.mark.parametrize("max_target_length", [None, 5])
def test_counts_add_up(tokenizer, examples, max_length, max_target_length):
    free = encode_examples(examples, tokenizer, DataConfig())
    whole = [
        len(r.tokens) <= max_length
        and r.loss_mask.sum() - 1 <= (max_target_length or max_length)
        for r in free.rows
    ]
    config = DataConfig(max_length=max_length, max_target_length=max_target_length)
    cut = encode_examples(examples, tokenizer, config)
    assert cut.report.rows == len(cut.rows) == len(free.rows)
    assert cut.report.dropped == 0
    changed = targets_cut = 0
    for before, after, fits in zip(free.rows, cut.rows, whole, strict=True):
        assert len(after.tokens) <= max_length
        target_before = before.tokens[before.loss_mask].tolist()
        target_after = after.tokens[after.loss_mask].tolist()
        source_before = before.tokens[~before.loss_mask].tolist()[:-1]
        source_after = after.tokens[~after.loss_mask].tolist()[:-1]
        assert source_before[: len(source_after)] == source_after
        assert target_before[: len(target_after)] == target_after
        changed += source_before != source_after
        targets_cut += target_before != target_after
        assert fits == np.array_equal(before.tokens, after.tokens)
    assert cut.report.truncated_sources == changed
    assert cut.report.truncated_targets == targets_cut
    assert cut.report.longest == max(len(r.tokens) for r in cut.rows)
    assert cut.report.longest_given == max(len(r.tokens) for r in free.rows)
    assert cut.report.tokens == sum(len(r.tokens) for r in cut.rows)
    assert cut.report.target_tokens == sum(r.loss_mask.sum() for r in cut.rows)

    drop = dataclasses.replace(config, overflow="drop")
    fail = dataclasses.replace(config, overflow="error")
    if any(whole):
        kept = encode_examples(examples, tokenizer, drop)
        expected = [r for r, fits in zip(free.rows, whole, strict=True) if fits]
        assert kept.report.dropped == len(whole) - len(expected)
        owners = [example for example in examples for _ in example.references]
        there = set(itertools.compress(owners, whole))
        assert kept.examples == tuple(e for e in examples if e in there)
        assert all(
            np.array_equal(a.tokens, b.tokens)
            for a, b in zip(kept.rows, expected, strict=True)
        )
    else:
        with pytest.raises(InputError, match="pairs are longer"):
            encode_examples(examples, tokenizer, drop)
    if not all(whole):
        number = len(whole) - sum(whole)
        with pytest.raises(InputError, match=f"{number} of {len(whole)} pairs"):
            encode_examples(examples, tokenizer, fail)


def test_room():
    about = {"positions": 1024, "prefix_length": 20, "backbone": "gpt2"}
    with pytest.raises(InputError) as raised:
        text_room(1010, **about)
    assert str(raised.value) == (
        "prefix length 20 + max_length 1010 = 1030 exceeds gpt2's 1024 positions; "
        "lower data.max_length to 1004"
    )
    assert text_room(1004, **about) == 1004
    with pytest.raises(InputError, match=r"lower prefix\.length"):
        text_room(8, positions=16, prefix_length=16, backbone="tiny")


def test_nothing_to_encode(tokenizer):
    with pytest.raises(InputError, match="no examples"):
        encode_examples([], tokenizer, DataConfig())


def test_truncated_prompts_keep_their_separator(tokenizer):
    prompts = encode_prompts(["old mill by the river", "a", ""], tokenizer)
    cut, number = truncate_prompts(prompts, 4)
    assert number == 1 and [len(p) for p in cut] == [4, 3, 2]
    assert all(p[-1] == tokenizer.bos_token_id for p in cut)
    assert cut[0][:3].tolist() == prompts[0][:3].tolist()
    with pytest.raises(InputError):
        truncate_prompts(prompts, 0)


def test_tokenizer_without_end(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="bos_token"):
        encode_prompts(["a"], bare)
