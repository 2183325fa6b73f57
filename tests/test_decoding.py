"""Decoding: equal to the full forward pass (law 4), alone or in any company."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import each_family
from kinds import KINDS, make, opened
from prompts import METHODS, NEW, PROMPTS, decode, make_prefix

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.beam import beam_search
from prefix_jax.decoding.generate import generate_sequences
from prefix_jax.decoding.request import Request
from prefix_jax.decoding.rules import Rules
from prefix_jax.decoding.sample import sample
from prefix_jax.model.compose import bank
from prefix_jax.model.kv import KV

# The same law of each method; whole batches of each take a while to compile.
WITH_GREEDY_QUICK = [
    "greedy",
    *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "greedy"),
]


@pytest.fixture(scope="module")
def prefixes(backbone):
    return {
        "none": None,
        "shifted": make_prefix(backbone, 5),
        "unshifted": make_prefix(backbone, 5, "unshifted"),
    }


@pytest.fixture(scope="module")
def log_probs(backbone):
    """Log-probabilities of the next token by a full pass, padded to one shape."""

    @jax.jit
    def run(tokens, prefix):
        return jax.nn.log_softmax(backbone(tokens, prefix))

    def of(ids, prefix):
        padded = jnp.asarray([ids + [0] * (40 - len(ids))])
        return np.asarray(run(padded, prefix)[0, len(ids) - 1])

    return of


def full_pass(log_probs, ids, prefix, new=NEW):
    ids = list(ids)
    for _ in range(new):
        ids.append(int(log_probs(ids, prefix).argmax()))
    return ids[-new:]


def pad(prompts):
    length = max(map(len, prompts))
    tokens = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


def seeds(rows):
    return np.array([(0, row) for row in range(rows)], np.uint32)


@each_family
@pytest.mark.parametrize("kind", ["none", "shifted", "unshifted"])
def test_cached_equals_the_full_forward_pass(backbone, prefixes, log_probs, kind):
    prefix = prefixes[kind]
    prompts = [[7, 8, 9, 10, 11, 12], [250, 3], [40]]
    run = jax.jit(partial(sample, max_new_tokens=NEW))
    out = run(backbone, prefix, *pad(prompts), seeds(3))
    expected = [full_pass(log_probs, prompt, prefix) for prompt in prompts]
    assert out.tokens[:, 0].tolist() == expected


@each_family
@pytest.mark.parametrize("method", ["sample", "beam"])
def test_log_probabilities_are_those_of_the_full_pass(
    backbone, tokenizer, prefixes, log_probs, method
):
    """Also with rules, which change what is written but not what the model thinks."""
    prefix, prompt = prefixes["shifted"], [7, 8, 9]
    settings = decode(METHODS[method], repetition_penalty=1.3, barred_tokens=(5, 6))
    [found] = generate_sequences(
        backbone, tokenizer, [prompt], prefix=prefix, decode=settings
    )
    for generated in found:
        total, ids = 0.0, list(prompt)
        for token in generated.tokens:
            total += log_probs(ids, prefix)[token]
            ids.append(token)
        # A sum down to -40, where neighbouring f32 numbers are 3.8e-6 apart.
        assert generated.log_prob == pytest.approx(total, abs=2e-5)


@pytest.mark.parametrize("kind", ["infix", "layers", "gate", "embedding", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_prefix_decodes_as_the_full_pass(
    backbone, tokenizer, kind, method
):
    """Law 4; an infix stands before the last token of the prompt, as in training."""
    prefix = opened(make(backbone, **KINDS[kind])).fold(backbone)

    @jax.jit
    def full(tokens, start):
        after = jnp.arange(tokens.shape[1])[None] >= start - 1
        after = after if prefix.placement == "infix" else None
        return jax.nn.log_softmax(backbone(tokens, prefix, after=after))[0]

    prompts = [[7, 8, 9, 10, 11, 12], [250, 3]]
    settings = decode(METHODS[method], end_tokens=())
    found = generate_sequences(
        backbone, tokenizer, prompts, prefix=prefix, decode=settings
    )
    for prompt, sequences in zip(prompts, found, strict=True):
        for one in sequences:
            whole = [*prompt, *one.tokens]
            padded = jnp.asarray([whole + [0] * (20 - len(whole))])
            log_probs = np.asarray(full(padded, len(prompt)))
            log_probs = log_probs[len(prompt) - 1 : len(whole) - 1]
            each = log_probs[np.arange(NEW), list(one.tokens)]
            assert one.log_prob == pytest.approx(each.sum(), abs=2e-4)
            if method == "greedy":
                assert log_probs.argmax(-1).tolist() == list(one.tokens)


def test_rows_stop_at_the_end_token(backbone, log_probs):
    """The end token is written once, and nothing counts after it."""
    written = full_pass(log_probs, [7, 8, 9], None)
    end = written[4]
    stop = written.index(end)
    run = jax.jit(partial(sample, max_new_tokens=NEW, rules=Rules(end=(end,))))
    out = run(backbone, None, *pad([[7, 8, 9]]), seeds(1))
    assert out.lengths[0, 0] == stop + 1
    assert out.tokens[0, 0, : stop + 1].tolist() == written[: stop + 1]


@pytest.mark.parametrize("method", WITH_GREEDY_QUICK)
def test_a_row_does_not_depend_on_its_company(backbone, tokenizer, prefixes, method):
    """Nor on the batch size, the padding or, for samples, the other draws."""

    def run(prompts, **others):
        return generate_sequences(
            backbone,
            tokenizer,
            prompts,
            prefix=prefixes["shifted"],
            decode=decode(METHODS[method], **others),
        )

    together, small = run(PROMPTS), run(PROMPTS, batch_size=3)
    assert [[x.tokens for x in row] for row in small] == [
        [x.tokens for x in row] for row in together
    ]
    alone = run(PROMPTS[:1])
    assert [x.tokens for x in alone[0]] == [x.tokens for x in together[0]]


@pytest.mark.parametrize("method", WITH_GREEDY_QUICK)
def test_a_mixed_batch_equals_single_runs(backbone, tokenizer, method):
    """16 prefixes of 3 lengths, one for each row."""
    many = [make_prefix(backbone, length=(1, 4, 7)[i % 3], seed=i) for i in range(16)]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(16)]
    ids = np.random.default_rng(0).permutation(16)
    seeds = list(range(16)) if method == "sample" else None

    def run(rows, prefix, prefix_ids=None):
        return generate_sequences(
            backbone,
            tokenizer,
            [prompts[row] for row in rows],
            prefix=prefix,
            prefix_ids=prefix_ids,
            seeds=seeds and [seeds[row] for row in rows],
            decode=decode(METHODS[method]),
        )

    mixed = run(range(16), bank(many), ids)
    for row, i in enumerate(ids):
        [alone] = run([row], many[i])
        assert [x.tokens for x in mixed[row]] == [x.tokens for x in alone]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_rows_that_fill_a_batch_are_not_waited_for(backbone, tokenizer, method):
    """Three prompts are decoded as four rows, in as many steps as the three need."""
    [[free]] = generate_sequences(
        backbone, tokenizer, PROMPTS[:1], decode=decode(DecodeConfig())
    )
    settings = decode(METHODS[method], end_tokens=free.tokens[:3])
    request = Request.make(backbone, tokenizer, PROMPTS[:1] * 3, None, None, settings)
    inputs = request.inputs([0, 1, 2])
    assert inputs["mask"].any(-1).tolist() == [True, True, True, False]
    how = {"max_new_tokens": NEW, "rules": request.method.rules}
    if method == "greedy":
        out = jax.jit(partial(sample, **how))(backbone, **inputs)
        assert int(out.number) == out.lengths.max() < NEW
    else:
        del inputs["seeds"]
        out = jax.jit(partial(beam_search, **how, width=3))(backbone, **inputs)
        assert out.done[:3].all()
    assert not out.lengths[3].any()


def test_minimum_length_and_bars(backbone, tokenizer, log_probs):
    end = full_pass(log_probs, [7, 8, 9], None, 1)[0]
    settings = decode(DecodeConfig(), end_tokens=(end,))

    def run(**others):
        return generate_sequences(
            backbone,
            tokenizer,
            [[7, 8, 9]],
            decode=dataclasses.replace(settings, **others),
        )[0][0].tokens

    assert run() == (end,)
    assert end not in run(min_new_tokens=4)[:4]
    assert end not in run(barred_tokens=(end,))


@pytest.mark.parametrize("kind", [None, "flat", "infix"])
def test_prompts_read_in_parts_are_those_read_at_once(
    backbone, tokenizer, kind, monkeypatch
):
    """Of any length; parts without a token of any prompt are not read."""
    prefix = None if kind is None else make(backbone, **KINDS[kind]).fold(backbone)
    prompts = [list(range(3, 3 + length)) for length in (48, 2, 33, 40)]
    settings = decode(METHODS["greedy"], end_tokens=())

    def run():
        jax.clear_caches()  # the size of a part is no argument of the programs
        found = generate_sequences(
            backbone, tokenizer, prompts, prefix=prefix, decode=settings
        )
        return [one[0] for one in found]

    whole = run()
    monkeypatch.setattr("prefix_jax.decoding.context.FULL_PRODUCT", 1)
    for one, other in zip(whole, run(), strict=True):
        assert one.tokens == other.tokens
        assert one.log_prob == pytest.approx(other.log_prob, abs=2e-5)


def sizes(jaxpr):
    """Of all arrays that a program makes, also in the programs within it."""
    for equation in jaxpr.eqns:
        for made in equation.outvars:
            yield math.prod(getattr(made.aval, "shape", ()))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)


ONE = {
    "prefix": {},
    "infix": {"placement": "infix"},
    "gate": {"own_softmax": True},
    "lengths": {"lengths": jnp.array([[200], [0], [7]])},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ONE)
def test_a_shared_prefix_is_stored_once(backbone, kind, method):
    """Not for each row, sequence or beam: no array is as large as those would be.

    Of 5 prompts of 4 tokens, so that scores of 200 positions are smaller too.
    """
    rows, group = 5, 3
    positions = jnp.zeros((3, 1, 200, 4, 8))
    prefix = KV(positions, positions, "unshifted", **ONE[kind])
    tokens, mask = jnp.ones((rows, 4), jnp.int32), jnp.ones((rows, 4), bool)

    def largest(prefix):
        if method == "beam":
            run = partial(beam_search, width=group, max_new_tokens=3)
            made = jax.make_jaxpr(run)(backbone, prefix, tokens, mask)
        else:
            number = group if method == "sample" else 1
            run = partial(sample, group=number, max_new_tokens=3)
            made = jax.make_jaxpr(run)(backbone, prefix, tokens, mask, seeds(rows))
        return max(sizes(made.jaxpr))

    copies = rows * prefix.keys[0].size
    assert largest(prefix) <= prefix.keys.size < copies
    assert largest(prefix.select(jnp.zeros(rows, jnp.int32))) >= copies
