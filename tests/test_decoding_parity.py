"""Greedy, beam search, rules and sampling are those of transformers' `generate`."""

import jax.numpy as jnp
import numpy as np
import pytest
from rounding import FEW
from scipy import stats

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.generate import generate_sequences
from prefix_jax.decoding.rules import Rules, restrict, truncate

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
    """What transformers writes after each prompt, the end token included."""
    length = max(map(len, prompts))
    tokens = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=NEW,
            pad_token_id=0,
            eos_token_id=END,
            do_sample=False,
            **settings,
        )
    rows = out[:, length:].tolist()
    return [tuple(r[: r.index(END) + 1] if END in r else r[:NEW]) for r in rows]


def ours(backbone, tokenizer, prompts, prefix=None, **settings):
    settings = {"max_new_tokens": NEW, "end_tokens": (END,)} | settings
    found = generate_sequences(
        backbone, tokenizer, prompts, prefix=prefix, decode=DecodeConfig(**settings)
    )
    return [sequences[0].tokens for sequences in found]


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
    assert written == theirs(model, prompts)
    # Otherwise ends were never put to the test.
    assert any(tokens[-1] == END for tokens in written)


@pytest.mark.parametrize(("beams", "penalty", "early"), BEAMS)
def test_beam_search(backbone, tokenizer, model, prompts, beams, penalty, early):
    written = ours(
        backbone,
        tokenizer,
        prompts,
        method="beam",
        beams=beams,
        length_penalty=penalty,
        early_stopping=early,
    )
    assert written == theirs(
        model,
        prompts,
        num_beams=beams,
        length_penalty=penalty,
        early_stopping=EARLY[early],
    )


RULES = {
    "repetition": ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    "3-grams": ({"no_repeat_ngram": 3}, {"no_repeat_ngram_size": 3}),
    "2-grams": ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
    "at least": ({"min_new_tokens": 6}, {"min_new_tokens": 6}),
    "barred": ({"barred_tokens": (72, 294)}, {"suppress_tokens": [72, 294]}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_rules(backbone, tokenizer, model, method, rule):
    """On prompts of one length: transformers counts padding as text."""
    rng = np.random.default_rng(1)
    prompts = rng.integers(6, 40, (48, 9)).tolist()
    our_setting, their_setting = RULES[rule]
    beams = {"beams": 3} if method == "beam" else {}
    written = ours(backbone, tokenizer, prompts, method=method, **our_setting, **beams)
    expected = theirs(model, prompts, num_beams=beams.get("beams", 1), **their_setting)
    assert written == expected
    assert written != ours(backbone, tokenizer, prompts, method=method, **beams)


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


def test_padding_is_not_text_for_the_rules():
    """Where transformers would penalise the padding token."""
    scores = jnp.ones((2, 10))
    text = jnp.array([[0, 0, 3, 4], [1, 2, 3, 4]])
    real = jnp.array([[False, False, True, True], [True] * 4])
    out = restrict(scores, text, real, 4, 2, Rules(repetition_penalty=2.0))
    assert (np.asarray(out) == 0.5).nonzero()[1].tolist() == [3, 4, 1, 2, 3, 4]
    alone = restrict(
        scores[:1], text[:1, 2:], real[:1, 2:], 2, 2, Rules(no_repeat_ngram=2)
    )
    padded = restrict(scores[:1], text[:1], real[:1], 4, 2, Rules(no_repeat_ngram=2))
    np.testing.assert_array_equal(alone, padded)


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
