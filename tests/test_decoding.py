"""Decoding: equal to the full forward pass (law 4), alone or in any company."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import KINDS, make, opened

from prefix_jax.config import DecodeConfig
from prefix_jax.data.tokens import encode_texts
from prefix_jax.decoding.beam import beam_search
from prefix_jax.decoding.generate import (
    compiled_programs,
    generate,
    generate_sequences,
    stream,
)
from prefix_jax.decoding.request import Request
from prefix_jax.decoding.rules import Rules
from prefix_jax.decoding.sample import sample
from prefix_jax.errors import InputError
from prefix_jax.model.compose import bank
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig

NEW = 10
PROMPTS = ["The mill", "by the river is old and", "name", "area : riverside"]
METHODS = {
    "greedy": DecodeConfig(),
    "sample": DecodeConfig(method="sample", sequences=2, top_p=0.9),
    "beam": DecodeConfig(method="beam", beams=3, sequences=3),
}


def make_prefix(backbone, length, mode="shifted", seed=3):
    config = PrefixConfig(init="random", length=length, position_mode=mode)
    return init_prefix(backbone, config, key=jax.random.key(seed))()


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


def decode(settings, **others):
    return dataclasses.replace(settings, max_new_tokens=NEW, **others)


def pad(prompts):
    length = max(map(len, prompts))
    tokens = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


def keys(rows):
    return jax.random.split(jax.random.key(0), rows)


@pytest.mark.parametrize("kind", ["none", "shifted", "unshifted"])
def test_cached_equals_the_full_forward_pass(backbone, prefixes, log_probs, kind):
    prefix = prefixes[kind]
    prompts = [[7, 8, 9, 10, 11, 12], [250, 3], [40]]
    out = sample(backbone, prefix, *pad(prompts), keys(3), max_new_tokens=NEW)
    expected = [full_pass(log_probs, prompt, prefix) for prompt in prompts]
    assert out.tokens[:, 0].tolist() == expected


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
    out = sample(
        backbone,
        None,
        *pad([[7, 8, 9]]),
        keys(1),
        max_new_tokens=NEW,
        rules=Rules(end=(end,)),
    )
    assert out.lengths[0, 0] == stop + 1
    assert out.tokens[0, 0, : stop + 1].tolist() == written[: stop + 1]


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", METHODS)
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


def test_samples_differ_by_seed_and_repeat_with_it(backbone, tokenizer):
    def run(seed):
        settings = decode(METHODS["sample"], seed=seed)
        return generate_sequences(backbone, tokenizer, PROMPTS[:1], decode=settings)[0]

    first, again, other = run(1), run(1), run(2)
    assert first == again
    assert first != other
    assert first[0].tokens != first[1].tokens


SEEDS = [7, None, 2**32 - 1, 7]


def test_a_prompt_with_a_seed_is_sampled_as_if_alone(backbone, tokenizer):
    """Whatever its batch, and as `decode.seed` samples it by itself."""

    def run(prompts, seeds=None, **others):
        settings = decode(METHODS["sample"], **others)
        return [
            [x.tokens for x in row]
            for row in generate_sequences(
                backbone, tokenizer, prompts, seeds=seeds, decode=settings
            )
        ]

    together = run(PROMPTS, SEEDS)
    for i, seed in enumerate(SEEDS):
        if seed is not None:
            assert run(PROMPTS[i : i + 1], seed=seed) == together[i : i + 1]
            assert run(PROMPTS[i : i + 1], [seed], seed=1) == together[i : i + 1]
    assert run(PROMPTS)[1] == together[1]
    assert run(PROMPTS[::-1], SEEDS[::-1], batch_size=3)[0] == together[-1]
    assert run(PROMPTS[:1] * 2, [7, 8])[1] != together[0]


@pytest.mark.parametrize(
    ("seeds", "settings", "message"),
    [
        ([1], {"method": "sample"}, "there are 1 seeds for 4 prompts"),
        ([1, 2, 3, -1], {"method": "sample"}, r"seeds\[3\] is -1; expected .* from 0"),
        ([1, 2, 3, 2**32], {"method": "sample"}, r"seeds\[3\] is 4294967296; exp"),
        ([1, 2, 3, True], {"method": "sample"}, r"seeds\[3\] is True; expected"),
        (SEEDS, {}, 'seeds were given but decode.method is "greedy"'),
    ],
)
def test_seeds_that_cannot_be_used(backbone, tokenizer, seeds, settings, message):
    settings = decode(DecodeConfig(**settings))
    with pytest.raises(InputError, match=message):
        generate(backbone, tokenizer, PROMPTS, seeds=seeds, decode=settings)


def test_a_stop_string_ends_a_text_before_it(backbone, tokenizer):
    """Also one that begins inside a token and ends inside another."""
    free = generate(backbone, tokenizer, PROMPTS[:1], decode=decode(DecodeConfig()))[0]
    stop = free[2:5]
    settings = decode(DecodeConfig(), stop=("never written", stop))
    [[stopped]] = generate_sequences(backbone, tokenizer, PROMPTS[:1], decode=settings)
    assert stopped.text == free[: free.index(stop)]
    assert len(stopped.tokens) < NEW


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_streamed_pieces_join_to_the_text(backbone, tokenizer, prefixes, stop):
    settings = decode(DecodeConfig(method="sample", seed=5), stop=stop)
    pieces = list(
        stream(
            backbone,
            tokenizer,
            PROMPTS[1],
            prefix=prefixes["shifted"],
            decode=settings,
            tokens_at_a_time=2,
        )
    )
    whole = generate(
        backbone,
        tokenizer,
        PROMPTS[1:2],
        prefix=prefixes["shifted"],
        decode=settings,
    )
    assert "".join(pieces) == whole[0]
    assert stop or len(pieces) > 1


def test_prompts_of_any_length_share_a_few_programs(backbone, tokenizer):
    """500 prompts, as one request and one by one; 16, 32 and 64 are their buckets."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 300, n).tolist() for n in rng.integers(1, 61, 500)]
    settings = DecodeConfig(max_new_tokens=3, batch_size=16, min_new_tokens=2)
    before = compiled_programs()
    generate(backbone, tokenizer, prompts, decode=settings)
    assert compiled_programs() - before == 3
    for prompt in prompts[:100]:
        generate(backbone, tokenizer, [prompt], decode=settings)
    assert compiled_programs() - before == 6


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
    if method == "greedy":
        out = sample(backbone, **inputs, max_new_tokens=NEW, rules=request.rules)
        assert int(out.number) == out.lengths.max() < NEW
    else:
        del inputs["keys"]
        out = beam_search(
            backbone, **inputs, width=3, max_new_tokens=NEW, rules=request.rules
        )
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


def test_the_name_of_a_special_token_in_a_prompt_is_text(backbone, tokenizer):
    prompt = f"The mill {tokenizer.eos_token}"

    def written(prompt):
        decode = DecodeConfig(max_new_tokens=NEW)
        return generate(backbone, tokenizer, [prompt], decode=decode)

    [literal] = encode_texts([prompt], tokenizer)
    parsed = tokenizer.encode(prompt, add_special_tokens=False)
    assert written(literal) != written(parsed)
    assert written(prompt) == written(literal)


def test_limits_are_checked_before_decoding(backbone, tokenizer, prefixes):
    with pytest.raises(InputError, match=r"prefix 5 \+ prompt \d+ \+ .* 60 = \d+"):
        generate(
            backbone,
            tokenizer,
            ["The mill"],
            prefix=prefixes["shifted"],
            decode=DecodeConfig(max_new_tokens=60),
        )
    with pytest.raises(InputError, match=r"prompt 1 .* is empty"):
        generate(backbone, tokenizer, ["a", ""], decode=DecodeConfig(max_new_tokens=1))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, "say with prefix_ids"),
        ([0, 2], "prompt 1 asks for prefix 2; there are 2"),
        ([0, -1], "prompt 1 asks for prefix -1"),
        ([0], "must be 2 integers"),
    ],
)
def test_unknown_prefixes_are_refused(backbone, tokenizer, ids, message):
    two = bank([make_prefix(backbone, 2), make_prefix(backbone, 3)])
    with pytest.raises(InputError, match=message):
        generate(backbone, tokenizer, PROMPTS[:2], prefix=two, prefix_ids=ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 0.7}, 'for "sample" only'),
        ({"length_penalty": 2.0, "method": "sample"}, 'for "beam" only'),
        ({"sequences": 2}, "at most 1"),
        ({"method": "beam", "beams": 2, "sequences": 3}, "at most 2"),
        ({"min_new_tokens": 101}, "more than"),
        ({"stop": ("",)}, "empty"),
        ({"top_p": 1.5}, "> 0 and <= 1"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DecodeConfig(**settings)
