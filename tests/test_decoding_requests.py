"""What can be asked of decoding: seeds, stop strings, streams; and what cannot."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
from kinds import make
from prompts import METHODS, NEW, PROMPTS, decode, make_prefix

from prefix_jax.config import DecodeConfig
from prefix_jax.data.tokens import encode_texts
from prefix_jax.decoding.generate import (
    compiled_programs,
    each_sequences,
    generate,
    generate_sequences,
    stream,
)
from prefix_jax.decoding.request import Request, padded_length
from prefix_jax.errors import InputError
from prefix_jax.model.compose import bank
from prefix_jax.model.loading import load_backbone


@pytest.fixture(scope="module")
def prefixes(backbone):
    return {"shifted": make_prefix(backbone, 5)}


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


def test_an_end_token_that_the_backbone_lacks_is_said_to_be_the_tokenizers(
    backbone, tokenizer
):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(InputError, match=r"the tokenizer ends .* '<end>', token 300"):
        generate(backbone, other, PROMPTS, decode=decode(DecodeConfig()))
    settings = decode(DecodeConfig(), end_tokens=(300,))
    with pytest.raises(InputError, match=r"decode\.end_tokens has 300"):
        generate(backbone, tokenizer, PROMPTS, decode=settings)


def test_a_text_ends_with_any_token_that_the_configuration_lists(
    backbone, tokenizer, model_folder, tmp_path
):
    """As an instructed Llama's does, which has three of them; transformers' too."""

    def written(backbone):
        settings = decode(DecodeConfig())
        return generate_sequences(backbone, tokenizer, PROMPTS, decode=settings)

    free = [one.tokens for [one] in written(backbone)]
    end = free[0][3]
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = [config["eos_token_id"], end, 999, -1]
    (folder / "config.json").write_text(json.dumps(config))
    for [one], tokens in zip(written(load_backbone(folder)), free, strict=True):
        stop = tokens.index(end) + 1 if end in tokens else len(tokens)
        assert one.tokens == tokens[:stop]


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


def test_texts_come_in_order_as_batches_are_written(backbone, tokenizer, monkeypatch):
    """The first of many before the last is begun; all of them as from one call."""
    prompts = [*PROMPTS, *reversed(PROMPTS)]
    settings = decode(DecodeConfig(), batch_size=1)
    written, write = [], Request.write

    def count(self, batch):
        written.append(batch)
        return write(self, batch)

    monkeypatch.setattr(Request, "write", count)
    monkeypatch.setattr("prefix_jax.decoding.generate.NEIGHBOURS", 2)
    texts = each_sequences(backbone, tokenizer, prompts, decode=settings)
    assert not written
    first = next(texts)
    assert len(written) <= 2
    whole = generate_sequences(backbone, tokenizer, prompts, decode=settings)
    assert [first, *texts] == whole


def test_prompts_of_up_to_1024_tokens_have_seven_widths():
    """None of which is twice a prompt that is longer than the shortest of them."""
    widths = {length: padded_length(length) for length in range(1, 1025)}
    assert set(widths.values()) == {16, 32, 64, 128, 256, 512, 1024}
    assert all(n <= width < max(2 * n, 17) for n, width in widths.items())


def test_a_request_has_a_shape_for_each_width(backbone, tokenizer):
    """The last batch too; each prompt is in one of them, padded on the left."""
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 300, n).tolist() for n in random.integers(1, 61, 500)]
    settings = DecodeConfig(max_new_tokens=3, batch_size=16)
    request = Request.make(backbone, tokenizer, prompts, None, None, settings)
    shapes, seen = set(), []
    for batch in request.batches():
        inputs = request.inputs(batch)
        shapes.add(inputs["tokens"].shape)
        for i, tokens, mask in zip(
            batch, inputs["tokens"], inputs["mask"], strict=False
        ):
            assert np.asarray(tokens)[mask].tolist() == prompts[i]
            assert mask[-1]
        seen += batch
    assert shapes == {(16, 16), (16, 32), (16, 64)}
    assert sorted(seen) == list(range(500))


@pytest.mark.slow
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


def test_the_name_of_a_special_token_in_a_prompt_is_text(backbone, tokenizer):
    prompt = f"The mill {tokenizer.eos_token}"

    def written(prompt):
        decode = DecodeConfig(max_new_tokens=NEW)
        return generate(backbone, tokenizer, [prompt], decode=decode)

    [literal] = encode_texts([prompt], tokenizer)
    parsed = tokenizer.encode(prompt, add_special_tokens=False)
    assert written(literal) != written(parsed)
    assert written(prompt) == written(literal)


MOVES = {
    "none": 0,
    "shifted": 5,
    "unshifted": 0,
    "infix": 5,
    "lengths": 6,
    "shortest of a bank": 2,
    "longest of a bank": 9,
}
"""How many of the 64 positions each takes from the text after it."""


@pytest.fixture(scope="module")
def moving(backbone):
    """The prefixes, and the `prefix_ids` of a short prompt and one that is tight."""
    two = bank([make_prefix(backbone, 2), make_prefix(backbone, 9, seed=4)])
    return {
        "none": (None, None),
        "shifted": (make_prefix(backbone, 5), None),
        "unshifted": (make_prefix(backbone, 5, "unshifted"), None),
        "infix": (make(backbone, length=5, placement="infix")(), None),
        "lengths": (make(backbone, lengths=(1, 6, 0))(), None),
        "shortest of a bank": (two, [1, 0]),
        "longest of a bank": (two, [0, 1]),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MOVES)
def test_limits_are_checked_before_decoding(backbone, tokenizer, moving, kind, method):
    """A prompt may have all positions that its own prefix leaves it, and no more."""
    prefix, ids = moving[kind]
    room = 64 - MOVES[kind] - NEW
    settings = decode(METHODS[method])
    fewer = dataclasses.replace(settings, max_new_tokens=NEW - 1)
    tight, long = [[7], [7] * room], [[7], [7] * (room + 1)]
    Request.make(backbone, tokenizer, tight, prefix, ids, settings)
    Request.make(backbone, tokenizer, long, prefix, ids, fewer)

    before = compiled_programs()
    message = (
        rf"prefix {MOVES[kind]} \+ prompt {room + 1} \+ decode.max_new_tokens {NEW} = "
        "65 exceeds the backbone's 64 positions; shorten the prompt or lower "
        f"decode.max_new_tokens to {NEW - 1}$"
    )
    given = {"prefix": prefix, "decode": settings}
    with pytest.raises(InputError, match=rf"prompts\[1\]: {message}"):
        generate(backbone, tokenizer, long, prefix_ids=ids, **given)
    if method != "beam" and ids is None:  # what can be streamed
        with pytest.raises(InputError, match=rf"prompts\[0\]: {message}"):
            next(stream(backbone, tokenizer, long[1], **given))
    assert compiled_programs() == before


def test_prompts_that_leave_no_room_or_have_no_token(backbone, tokenizer):
    with pytest.raises(InputError, match=r"exceeds .*; shorten the prompt$"):
        generate(backbone, tokenizer, [[7] * 64], decode=DecodeConfig(max_new_tokens=1))
    with pytest.raises(InputError, match=r"prompts\[1\] .* is empty"):
        generate(backbone, tokenizer, ["a", ""], decode=DecodeConfig(max_new_tokens=1))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, "say with prefix_ids"),
        ([0, 2], "row 1 asks for prefix 2; there are 2"),
        ([0, -1], "row 1 asks for prefix -1"),
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


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("The mill", "prompts is one text"),
        ([[3, 4], [10, 99_999]], r"prompts\[1\] is .*numbers from 0 to"),
        ([[10, -1]], r"prompts\[0\] is"),
    ],
)
def test_prompts_of_no_tokens_are_refused(backbone, tokenizer, prompts, message):
    with pytest.raises(InputError, match=message):
        generate_sequences(
            backbone, tokenizer, prompts, decode=decode(METHODS["greedy"])
        )
