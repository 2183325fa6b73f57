"""Stop strings: found in any run of tokens, and where they are, texts end."""

import dataclasses

import numpy as np
import pytest
import tokenizers
from prompts import METHODS, NEW, PROMPTS, decode
from transformers import PreTrainedTokenizerFast

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.generate import generate_sequences
from prefix_jax.decoding.request import Request
from prefix_jax.decoding.stops import START, stop_table, token_bytes

STOPS = {
    "one": ("mill by",),
    "one byte": ("e", "."),
    "several": ("he m", "riverside", "er is ol", "ice"),
    "overlapping": ("erriver", "riveriv", "rir", "verri"),
    "one in another": ("erererive", "rere", "ive"),
    "of several bytes": ("é", "→", "日本", "本é"),
}


def random_tokens(random, text, pieces):
    """Tokens that write these bytes, one way of many; special ones among them."""
    tokens = []
    while text:
        fitting = [i for i, piece in enumerate(pieces) if text.startswith(piece)]
        tokens.append(int(random.choice(fitting)))
        text = text[len(pieces[tokens[-1]]) :]
    return tokens


def cut(tokenizer, tokens, stops):
    """The first tokens that hold a stop string, and the text before it: by search."""
    for number in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:number], skip_special_tokens=True)
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return tokens[:number], text[: min(found)]
    return tokens, tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", STOPS)
def test_found_with_the_token_that_completes_it_and_ever_after(tokenizer, name):
    """Against a search of the decoded text, on texts of pieces of the stop strings."""
    stops, random = STOPS[name], np.random.default_rng(0)
    table, pieces = stop_table(stops, tokenizer, 300), token_bytes(tokenizer)
    never = 0
    for _ in range(150):
        text = b" "
        for _ in range(6):
            stop = random.choice(stops).encode()
            start, end = np.sort(random.integers(0, len(stop) + 1, 2))
            text += stop[start:end]
        tokens = random_tokens(random, text, pieces)
        states = [START]
        for token in tokens:
            states.append(table[states[-1], token])
        found = [state == len(table) - 1 for state in states[1:]]
        until = len(cut(tokenizer, tokens, stops)[0])
        if not any(stop.encode() in text for stop in stops):
            until += 1
            never += 1
        assert found == [number >= until for number in range(1, len(tokens) + 1)]
    assert 0 < never < 150


def test_tokens_write_the_bytes_that_are_decoded(tokenizer):
    pieces, random = token_bytes(tokenizer), np.random.default_rng(0)
    for _ in range(100):
        tokens = random.integers(0, 300, 20)
        written = b"".join(pieces[token] for token in tokens)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert written.decode(errors="replace") == text


def test_tokens_of_sentencepiece_write_bytes_too():
    entries = ["</s>", "<0x0A>", "<0xC3>", "<0xA9>", "▁the", "é", "<0x0A", "Ā"]
    model = tokenizers.models.WordLevel({x: i for i, x in enumerate(entries)}, "</s>")
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), eos_token="</s>"
    )
    written = [b"", b"\n", b"\xc3", b"\xa9", *(x.encode() for x in (" the", "é"))]
    assert token_bytes(made) == [*written, b"<0x0A", "Ā".encode()]


def test_tokens_that_the_tokenizer_does_not_have_write_nothing(tokenizer):
    known = stop_table(("mill",), tokenizer, 300)
    more = stop_table(("mill",), tokenizer, 310)
    np.testing.assert_array_equal(more[:, :300], known)
    np.testing.assert_array_equal(
        more[:, 300:], np.arange(len(known))[:, None] + [0] * 10
    )
    np.testing.assert_array_equal(stop_table(("mill",), tokenizer, 290), known[:, :290])


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_a_text_ends_before_the_first_stop_string(backbone, tokenizer, method):
    """And else is what it is without, in every sequence of every prompt.

    The strings begin inside a token and end inside another.
    """
    pieces = token_bytes(tokenizer)
    short = tuple(token for token, piece in enumerate(pieces) if len(piece) < 2)
    settings = decode(METHODS[method], barred_tokens=short, end_tokens=())

    def run(**others):
        found = generate_sequences(
            backbone,
            tokenizer,
            PROMPTS[:2],
            decode=dataclasses.replace(settings, **others),
        )
        return [one for sequences in found for one in sequences]

    free = run()
    stops = []
    for one, number in ((free[0], 3), (free[-1], 6)):
        first, second = (pieces[token] for token in one.tokens[number : number + 2])
        stops.append((first[-1:] + second[:-1]).decode())
    stopped = run(stop=("never written", *stops))
    for one, whole in zip(stopped, free, strict=True):
        assert (one.tokens, one.text) == cut(tokenizer, whole.tokens, stops)
    assert len(stopped[0].tokens) < NEW and len(stopped[-1].tokens) < NEW
    assert len({len(one.tokens) for one in stopped}) > 1


def test_a_character_of_several_tokens_ends_a_text(backbone, tokenizer):
    """As soon as it is whole, and nothing else does."""
    pieces, stops = token_bytes(tokenizer), ("é", "→")
    few = {bytes([byte]) for stop in stops for byte in stop.encode()}
    settings = decode(
        DecodeConfig(method="sample", sequences=64, temperature=50.0),
        barred_tokens=tuple(i for i, piece in enumerate(pieces) if piece not in few),
        end_tokens=(),
        stop=stops,
    )
    [written] = generate_sequences(backbone, tokenizer, PROMPTS[:1], decode=settings)
    for one in written:
        assert (one.tokens, one.text) == cut(tokenizer, one.tokens, stops)
        whole = tokenizer.decode(one.tokens)
        assert len(one.tokens) == NEW or any(stop in whole for stop in stops)
    ended = {one.tokens[-1] for one in written if len(one.tokens) < NEW}
    assert {pieces[token] for token in ended} == {b"\xa9", b"\x92"}


def test_what_is_streamed_is_never_taken_back(backbone, tokenizer):
    """However a text goes on; and nothing is held back that begins no stop string."""
    stops = ("abac", "ba", "cca")
    settings = decode(DecodeConfig(), stop=stops)
    certain = Request.make(backbone, tokenizer, ["a"], None, None, settings).certain
    random, held = np.random.default_rng(0), 0
    for _ in range(2000):
        text, more = ("".join(random.choice([*"abcd"], n)) for n in (4, 5))
        if any(stop in text for stop in stops):
            continue
        ends = [(text + more).find(stop) for stop in stops if stop in text + more]
        whole = (text + more)[: min(ends, default=None)]
        assert whole.startswith(certain(text))
        assert certain(text + "d") == text + "d"
        held += certain(text) != text
    assert held
    assert certain("d\ufffd") == "d"  # the first bytes of a character
