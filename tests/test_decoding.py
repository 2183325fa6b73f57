"""Greedy decoding equals the full forward pass, token by token (law 4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefix_jax.config import DecodeConfig, PrefixConfig
from prefix_jax.decoding.generate import generate
from prefix_jax.decoding.greedy import greedy
from prefix_jax.errors import InputError
from prefix_jax.model.prefix import init_prefix

NEW = 10


@pytest.fixture(scope="module")
def prefixes(backbone):
    def make(mode):
        config = PrefixConfig(init="random", length=5, position_mode=mode)
        return init_prefix(backbone, config, key=jax.random.key(3))()

    return {"none": None, "shifted": make("shifted"), "unshifted": make("unshifted")}


@pytest.fixture(scope="module")
def next_token(backbone):
    """The argmax of a full forward pass, padded on the right to one shape."""

    @jax.jit
    def logits(tokens, prefix):
        return backbone(tokens, prefix)

    def choose(ids, prefix):
        padded = jnp.asarray([ids + [0] * (40 - len(ids))])
        return int(logits(padded, prefix)[0, len(ids) - 1].argmax())

    return choose


def full_pass(next_token, ids, prefix, new=NEW):
    ids = list(ids)
    for _ in range(new):
        ids.append(next_token(ids, prefix))
    return ids[-new:]


@pytest.mark.parametrize("kind", ["none", "shifted", "unshifted"])
def test_cached_equals_the_full_forward_pass(backbone, prefixes, next_token, kind):
    prefix = prefixes[kind]
    prompts = [[7, 8, 9, 10, 11, 12], [250, 3], [40]]
    tokens = np.zeros((3, 6), np.int32)
    mask = np.zeros((3, 6), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, 6 - len(prompt) :] = prompt
        mask[row, 6 - len(prompt) :] = True
    out = greedy(
        backbone,
        prefix,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        max_new_tokens=NEW,
        end=None,
    )
    expected = [full_pass(next_token, prompt, prefix) for prompt in prompts]
    assert out.tolist() == expected


def test_rows_stop_at_the_end_token(backbone, next_token):
    """The end token is written once and the rest of the row is filled with it."""
    written = full_pass(next_token, [7, 8, 9], None)
    end = written[4]
    stop = written.index(end)
    out = greedy(
        backbone,
        None,
        jnp.asarray([[7, 8, 9]]),
        jnp.ones((1, 3), bool),
        max_new_tokens=NEW,
        end=end,
    )
    assert out[0].tolist() == written[: stop + 1] + [end] * (NEW - stop - 1)


def test_texts_do_not_depend_on_batching(backbone, tokenizer, prefixes):
    prompts = ["The mill", "by the river is old and", "name", "area : riverside"]
    one = [
        generate(
            backbone,
            tokenizer,
            [prompt],
            prefix=prefixes["shifted"],
            decode=DecodeConfig(max_new_tokens=NEW),
        )[0]
        for prompt in prompts
    ]
    together = generate(
        backbone,
        tokenizer,
        prompts,
        prefix=prefixes["shifted"],
        decode=DecodeConfig(max_new_tokens=NEW, batch_size=3),
    )
    assert together == one


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
