"""Greedy, beam search, rules and sampling are those of transformers' `generate`."""

import jax.numpy as jnp
import numpy as np
import pytest
from rounding import FEW
from scipy import stats

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.generate import generate_sequences
from prefix_jax.decoding.rules import Rules, restrict, truncate
from prefix_jax.decoding.stops import token_bytes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NEW = 12
END = 145
"""Of the tokens that this backbone likes, so that texts end at all lengths."""


@pytest.fixture(scope="module")
def model(model_folder):
    return transformers.GPT2LMHeadModel.from_pretrained(model_folder).eval()


@pytest.fixture(scope="module")
def prompts():
    """56 prompts of 1 to 12 random tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(6, 300, n).tolist() for n in rng.integers(1, 13, 56)]


def theirs(model, prompts, **settings):
    """What transformers generates, and of it the tokens that follow each prompt."""
    length = max(map(len, prompts))
    tokens = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    settings = {"max_new_tokens": NEW, "do_sample": False} | settings
    with torch.no_grad():
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            pad_token_id=0,
            eos_token_id=END,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **settings,
        )
    rows = out.sequences[:, length:].tolist()
    # The end token is the last.
    rows = [tuple(r[: r.index(END) + 1] if END in r else r[:NEW]) for r in rows]
    return out, rows


def written_by_ours(backbone, tokenizer, prompts, **settings):
    """All sequences of all prompts, one after the other."""
    settings = {"max_new_tokens": NEW, "end_tokens": (END,)} | settings
    found = generate_sequences(
        backbone, tokenizer, prompts, decode=DecodeConfig(**settings)
    )
    return [one for sequences in found for one in sequences]


def ours(*arguments, **settings):
    return [one.tokens for one in written_by_ours(*arguments, **settings)]


BEAMS = [
    (4, 1.0, "no"),
    (5, 0.0, "no"),
    (3, 1.0, "yes"),
    (4, 2.0, "never"),
    (4, -1.0, "never"),
]
EARLY = {"no": False, "yes": True, "never": "never"}


def test_greedy(backbone, tokenizer, model, prompts):
    written = ours(backbone, tokenizer, prompts)
    assert written == theirs(model, prompts)[1]
    # Otherwise ends were never put to the test.
    assert any(tokens[-1] == END for tokens in written)


@pytest.mark.parametrize(("beams", "penalty", "early"), BEAMS)
def test_beam_search(backbone, tokenizer, model, prompts, beams, penalty, early):
    """All sequences of every prompt, in their order, and what they are ranked by."""
    written = written_by_ours(
        backbone,
        tokenizer,
        prompts,
        method="beam",
        beams=beams,
        sequences=beams,
        length_penalty=penalty,
        early_stopping=early,
    )
    out, rows = theirs(
        model,
        prompts,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=penalty,
        early_stopping=EARLY[early],
    )
    assert [one.tokens for one in written] == rows
    for one, score in zip(written, out.sequences_scores.tolist(), strict=True):
        # Sums down to -50, where neighbouring f32 numbers are 3.8e-6 apart.
        total = score * len(one.tokens) ** penalty
        assert one.log_prob == pytest.approx(total, abs=2e-5)


RULES = {
    "repetition": ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    # Padding, if it were text, would be written.
    "reward": ({"repetition_penalty": 0.3}, {"repetition_penalty": 0.3}),
    "3-grams": ({"no_repeat_ngram": 3}, {"no_repeat_ngram_size": 3}),
    "2-grams": ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
    "at least": ({"min_new_tokens": 6}, {"min_new_tokens": 6}),
    "barred": ({"barred_tokens": (72, 294)}, {"suppress_tokens": [72, 294]}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_rules(backbone, tokenizer, model, method, rule):
    """On prompts of several lengths, but for n-grams.

    For those, unlike for the repetition penalty, transformers has padding as text.
    """
    rng = np.random.default_rng(1)
    prompts = rng.integers(6, 40, (48, 9)).tolist()
    if not rule.endswith("grams"):
        prompts = [prompt[i % 7 :] for i, prompt in enumerate(prompts)]
    our_setting, their_setting = RULES[rule]
    beams = {"beams": 3} if method == "beam" else {}
    written = ours(backbone, tokenizer, prompts, method=method, **our_setting, **beams)
    _, expected = theirs(
        model, prompts, num_beams=beams.get("beams", 1), **their_setting
    )
    assert written == expected
    assert written != ours(backbone, tokenizer, prompts, method=method, **beams)


STOPS = ("s riv", "deh", "ill")
"""Of which this backbone writes the first two from inside a token into another."""


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_stop_strings(backbone, tokenizer, model, method):
    """They end beams too. Theirs stay in the text, and may begin in the prompt."""
    pieces = token_bytes(tokenizer)
    prompts = [
        [i, token]
        for token, piece in enumerate(pieces)
        for i in (7, 8)
        if piece.isalpha() and piece[-1:] not in b"sdei"
    ]
    short = [i for i, piece in enumerate(pieces) if len(piece) < 2]
    settings = {"method": method, "barred_tokens": tuple(short), "stop": STOPS}
    number = 3 if method == "beam" else 1
    if method == "beam":
        settings |= {"beams": number, "sequences": number}
    written = written_by_ours(backbone, tokenizer, prompts, **settings)
    _, expected = theirs(
        model,
        prompts,
        num_beams=number,
        num_return_sequences=number,
        suppress_tokens=short,
        stop_strings=list(STOPS),
        tokenizer=tokenizer,
    )
    for one, row in zip(written, expected, strict=True):
        # What finished early is filled up, with padding or with end tokens.
        length = len(one.tokens)
        assert one.tokens == row[:length] and set(row[length:]) <= {0, END}
        assert not any(stop in one.text for stop in STOPS)
    whole = [one for one in written if len(one.tokens) == NEW]
    assert len(written) > len(whole) > 0


SCORES = np.random.default_rng(2).normal(0, 3, (40, 300)).astype(np.float32)
TRUNCATIONS = {
    "temperature": ({"temperature": 0.7}, "TemperatureLogitsWarper", 0.7),
    "top-k": ({"top_k": 9}, "TopKLogitsWarper", 9),
    "top-p": ({"top_p": 0.8}, "TopPLogitsWarper", 0.8),
    "top-p of little": ({"top_p": 0.01}, "TopPLogitsWarper", 0.01),
    "min-p": ({"min_p": 0.1}, "MinPLogitsWarper", 0.1),
}


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_truncations_keep_the_same_tokens(name):
    settings, peer, value = TRUNCATIONS[name]
    mine = truncate(jnp.asarray(SCORES), Rules(sample=True, **settings))
    warper = getattr(transformers.generation.logits_process, peer)(value)
    expected = warper(None, torch.tensor(SCORES)).numpy()
    np.testing.assert_allclose(mine, expected, **FEW)
    assert name == "temperature" or np.isinf(expected).any()


def test_truncations_together_are_in_the_order_of_transformers(model, prompts):
    """What it samples from; in any other order of neighbours it would be another."""
    settings = {"temperature": 1.5, "top_k": 20, "top_p": 0.8, "min_p": 0.1}
    out, _ = theirs(model, prompts, do_sample=True, max_new_tokens=1, **settings)
    logits, expected = out.logits[0], out.scores[0].numpy()
    mine = truncate(jnp.asarray(logits.numpy()), Rules(sample=True, **settings))
    np.testing.assert_allclose(mine, expected, **FEW)

    process = transformers.generation.logits_process
    warpers = [
        process.TemperatureLogitsWarper(settings["temperature"]),
        process.TopKLogitsWarper(settings["top_k"]),
        process.TopPLogitsWarper(settings["top_p"]),
        process.MinPLogitsWarper(settings["min_p"]),
    ]
    for first, second in ((0, 2), (2, 3), (1, 2)):
        order = list(warpers)
        order[first], order[second] = order[second], order[first]
        other = process.LogitsProcessorList(order)(None, logits).numpy()
        assert (np.isinf(other) != np.isinf(expected)).any()


def test_padding_is_not_text_for_the_rules():
    """As for the repetition penalty of transformers, but not for its n-grams."""
    process = transformers.generation.logits_process
    scores = np.random.default_rng(0).normal(size=(2, 10)).astype(np.float32)
    real = np.array([[False, False, True, True], [True] * 4])

    def restricted(text, **settings):
        arrays = (jnp.asarray(x) for x in (scores, text, real))
        return np.asarray(restrict(*arrays, 4, 2, Rules(**settings)))

    def processed(text, processor):
        return processor(torch.tensor(text), torch.tensor(scores)).numpy()

    penalty = process.RepetitionPenaltyLogitsProcessor(
        2.0, prompt_ignore_length=torch.tensor([2, 0])
    )
    once = np.array([[0, 0, 3, 4], [1, 2, 3, 4]])
    np.testing.assert_array_equal(
        restricted(once, repetition_penalty=2.0), processed(once, penalty)
    )
    twice = np.array([[0, 0, 3, 0], [1, 2, 3, 1]])
    mine = np.isinf(restricted(twice, no_repeat_ngram=2))
    their = np.isinf(processed(twice, process.NoRepeatNGramLogitsProcessor(2)))
    assert np.argwhere(mine).tolist() == [[1, 2]]
    assert np.argwhere(their).tolist() == [[0, 0], [0, 3], [1, 2]]


def test_samples_have_the_distribution_of_transformers(backbone, tokenizer, model):
    """Chi-squared over pairs of tokens; the seed is fixed, so the outcome is too."""
    prompt, draws, kept, temperature = [7, 8, 9], 4000, 6, 1.5

    def distribution(ids):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1]
        process = transformers.generation.logits_process
        logits = process.TemperatureLogitsWarper(temperature)(None, logits)
        return process.TopKLogitsWarper(kept)(None, logits).softmax(-1)[0].numpy()

    settings = DecodeConfig(
        method="sample",
        max_new_tokens=2,
        end_tokens=(),
        temperature=temperature,
        top_k=kept,
        sequences=100,
        batch_size=40,
        seed=3,
    )
    found = generate_sequences(
        backbone, tokenizer, [prompt] * (draws // 100), decode=settings
    )
    written = [generated.tokens for row in found for generated in row]
    first = distribution(prompt)
    expected = {
        (a, b): draws * first[a] * chance
        for a in np.flatnonzero(first)
        for b, chance in enumerate(distribution([*prompt, int(a)]))
        if chance
    }
    counts = {pair: written.count(pair) for pair in expected}
    assert sum(counts.values()) == draws  # nothing outside of the support
    # Rare pairs together: the statistic needs some 5 of a kind.
    common = [pair for pair in expected if expected[pair] >= 5]
    observed = [counts[pair] for pair in common]
    wanted = [expected[pair] for pair in common]
    if len(common) < len(expected):
        observed.append(draws - sum(observed))
        wanted.append(draws - sum(wanted))
    assert len(common) > 15
    wanted = np.array(wanted, np.float64) * draws / np.sum(wanted, dtype=np.float64)
    _, p = stats.chisquare(observed, wanted)
    assert p > 0.01
