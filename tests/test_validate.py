"""Held-out loss shared by processes, and sources too long to decode."""

import dataclasses

import jax
import numpy as np
import pytest
from rounding import SUM

from prefix_jax.config import (
    BackboneConfig,
    Config,
    DecodeConfig,
    MeshConfig,
    TrainConfig,
)
from prefix_jax.data.batches import eval_batches
from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import encode_examples, encode_prompts
from prefix_jax.data_config import DataConfig
from prefix_jax.decoding.generate import generate
from prefix_jax.errors import InputError
from prefix_jax.learning.step import make_eval_step
from prefix_jax.mesh import make_mesh, replicated
from prefix_jax.model.compose import bank
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.prepare import Rows, prepare
from prefix_jax.runs.validate import Validator, write_each, write_texts


@pytest.fixture(scope="module")
def setup(model_folder):
    return prepare(
        Config(
            backbone=BackboneConfig(name=str(model_folder)),
            train=TrainConfig(batch_size=4),
            mesh=MeshConfig(data=1),
        )
    )


def example(source):
    return Example(source, "The mill is old.", ("The mill is old.",))


def test_rows_without_room_behind_their_prefix_are_refused(setup):
    """Whatever the bucket: positions beyond the table would be read without a word."""
    limit = setup.backbone.config.n_positions
    data = DataConfig(max_length=64)
    encoded = encode_examples([example("name : Mill")], setup.tokenizer, data).rows
    validator = Validator(setup, Rows(encoded, [], "", (64,)))
    [row] = encoded
    for spare, fits in ((0, True), (-1, False)):
        length = limit - (len(row.tokens) - 1) - spare
        form = PrefixConfig(init="random", length=length)
        prefix = init_prefix(setup.backbone, form, key=jax.random.key(0))()
        if fits:
            assert np.isfinite(validator(setup.backbone, prefix).loss)
        else:
            with pytest.raises(
                InputError, match=f"{limit + 1} positions.*by 1 or more"
            ):
                validator(setup.backbone, prefix)


def test_the_shares_of_all_processes_are_the_whole(setup, monkeypatch):
    examples = [example("name : " + "Mill " * (i % 3)) for i in range(7)]
    data = DataConfig(max_length=64)
    rows = encode_examples(examples, setup.tokenizer, data).rows
    held_out = Rows(rows, examples, "", (32, 64))
    validator, heard = Validator(setup, held_out), []
    whole = validator(setup.backbone, None, progress=heard.append)
    assert heard == [1] * len(validator) == [1, 1]
    shares = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(Validator(setup, held_out)(setup.backbone, None))
    assert whole.tokens == sum(share.tokens for share in shares)
    assert min(share.tokens for share in shares) > 0
    total = sum(share.loss * share.tokens for share in shares)
    assert total == pytest.approx(whole.loss * whole.tokens, rel=SUM["rtol"])


def test_long_sources_lose_their_end(setup):
    decode = DecodeConfig(max_new_tokens=4)
    sources = ["name : Mill", "Mill " * 60]
    examples = [example(source) for source in sources]
    written = write_texts(setup, setup.backbone, None, examples, decode)
    assert written.cut_sources == 1
    short, long = encode_prompts(sources, setup.tokenizer)
    cut = np.append(long[: setup.backbone.config.n_positions - 4 - 1], long[-1])
    texts = generate(setup.backbone, setup.tokenizer, [short, cut], decode=decode)
    assert written.texts == [text.strip() for text in texts]


def test_long_sources_are_what_data_overflow_says(setup):
    decode = DecodeConfig(max_new_tokens=4)
    examples = [example("Mill " * 60), example("name : Mill")]

    def write(overflow):
        data = dataclasses.replace(setup.config.data, overflow=overflow)
        config = dataclasses.replace(setup.config, data=data)
        other = dataclasses.replace(setup, config=config)
        return write_texts(other, setup.backbone, None, examples, decode)

    dropped = write("drop")
    assert dropped.examples == examples[1:] and dropped.cut_sources == 0
    whole = write("truncate_source")
    assert dropped.texts == whole.texts[1:] and len(whole.texts) == 2
    with pytest.raises(InputError, match=r'"Mill .*" has \d+ tokens; .* 60 positions'):
        write("error")


def test_no_room_for_a_prompt_is_said(setup):
    decode = DecodeConfig(max_new_tokens=64)
    with pytest.raises(
        InputError, match=r"0 positions .* lower decode\.max_new_tokens"
    ):
        write_texts(setup, setup.backbone, None, [example("Mill")], decode)


@pytest.fixture(scope="module")
def many(backbone):
    """16 prefixes of 3 lengths, by name."""
    return {
        f"p{i}": init_prefix(
            backbone,
            PrefixConfig(init="random", length=(1, 4, 7)[i % 3]),
            key=jax.random.key(i),
        )()
        for i in range(16)
    }


@pytest.fixture(scope="module")
def mixed(setup, many):
    """48 examples, three for each of the prefixes, in no order, and their rows."""
    names = np.random.default_rng(0).permutation([*many] * 3)
    examples = [
        dataclasses.replace(example(f"name : Mill {i}"), prefix=str(name))
        for i, name in enumerate(names)
    ]
    rows = encode_examples(examples, setup.tokenizer, DataConfig(max_length=57)).rows
    return Rows(rows, examples, "", (40,))


def test_a_mixed_batch_has_the_losses_of_single_runs(setup, many, mixed):
    together = Validator(setup, mixed, prefixes=list(many)).each(
        setup.backbone, bank(list(many.values()))
    )
    evaluate = make_eval_step()
    for (name, prefix), found in zip(many.items(), together, strict=True):
        rows = [row for row in mixed.rows if row.prefix == name]
        [batch] = eval_batches(rows, batch_size=4, buckets=(40,), pad_id=0)
        alone = evaluate(setup.backbone, prefix, batch)
        assert found.tokens == alone["tokens"] > 0
        assert found.loss == pytest.approx(
            float(alone["nll"] / alone["tokens"]), rel=SUM["rtol"]
        )
    assert len({found.loss for found in together}) == 16


def test_devices_share_a_mixed_batch(setup, many, mixed):
    """Rows and the ids of their prefixes are split alike."""
    prefixes = bank(list(many.values()))
    some = dataclasses.replace(mixed, rows=mixed.rows[:6])
    one = Validator(setup, some, prefixes=list(many)).each(setup.backbone, prefixes)
    mesh = make_mesh(MeshConfig(data=4))
    backbone, prefixes = jax.device_put((setup.backbone, prefixes), replicated(mesh))
    spread = dataclasses.replace(setup, backbone=backbone, mesh=mesh)
    four = Validator(spread, some, prefixes=list(many)).each(backbone, prefixes)
    assert sum(found.tokens > 0 for found in one) > 3
    for found, expected in zip(four, one, strict=True):
        assert found.tokens == expected.tokens
        assert found.loss == pytest.approx(expected.loss, rel=SUM["rtol"])


@pytest.mark.slow
def test_a_mixed_batch_has_the_texts_of_single_runs(setup, many, mixed):
    """Also where a source is cut: by its own prefix's length, not the longest."""
    examples = [
        dataclasses.replace(x, source=f"{i} " + "Mill " * (8 + i % 7))
        for i, x in enumerate(mixed.examples)
    ]
    decode = DecodeConfig(max_new_tokens=5, batch_size=16)
    groups = [[x for x in examples if x.prefix == name] for name in many]
    together = write_each(
        setup, setup.backbone, bank(list(many.values())), groups, decode
    )
    assert 0 < sum(one.cut_sources for one in together) < 48
    for prefix, group, found in zip(many.values(), groups, together, strict=True):
        assert found == write_texts(setup, setup.backbone, prefix, group, decode)
    assert len({text for one in together for text in one.texts}) > 16
