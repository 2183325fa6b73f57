"""Greedy decoding: one compiled loop over a preallocated cache."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV, empty_cache


@partial(jax.jit, static_argnames=("max_new_tokens", "end"))
def greedy(
    backbone: GPT2,
    prefix: KV | None,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    max_new_tokens: int,
    end: int | None,
) -> Int[Array, "B M"]:
    """The most probable continuation, token by token, [B, max_new_tokens].

    Prompts are padded on the left (`mask` False). A row that has written `end` is
    filled with it; the loop stops when all have. The prefix is never copied per row.
    """
    rows, length = tokens.shape
    config = backbone.config
    offset = 0 if prefix is None else prefix.position_offset
    slots = length + max_new_tokens
    fill = 0 if end is None else end

    real = mask.sum(-1)  # tokens of each prompt
    positions = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0) + offset
    first = backbone.forward(
        tokens, prefix=prefix, mask=mask, positions=positions, collect=True
    )
    assert first.kv is not None
    cache = empty_cache(
        config.n_layer, rows, slots, config.n_head, config.head_width, backbone.dtype
    )
    cache = _write(cache, first.kv, 0)
    seen = jnp.pad(mask, ((0, 0), (0, max_new_tokens + 1)), constant_values=False)
    seen = seen.at[:, slots].set(True)  # the token being read

    def choose(hidden):
        return jnp.argmax(backbone.logits(hidden[:, -1]), -1).astype(jnp.int32)

    def unfinished(carry):
        step, _, _, _, done, _ = carry
        return (step < max_new_tokens) & ~done.all()

    def advance(carry):
        step, token, cache, seen, done, out = carry
        token = jnp.where(done, fill, token)
        out = out.at[:, step].set(token)
        if end is not None:
            done |= token == end

        then = backbone.forward(
            token[:, None],
            prefix=prefix,
            cache=cache,
            mask=seen,
            positions=(offset + real + step)[:, None],
            collect=True,
        )
        assert then.kv is not None
        cache = _write(cache, then.kv, length + step)
        seen = seen.at[:, length + step].set(True)
        return step + 1, choose(then.hidden), cache, seen, done, out

    state = (
        jnp.int32(0),
        choose(first.hidden),
        cache,
        seen,
        jnp.zeros(rows, bool),
        jnp.full((rows, max_new_tokens), fill, jnp.int32),
    )
    return jax.lax.while_loop(unfinished, advance, state)[-1]


def _write(cache: KV, new: KV, slot: Int[Array, ""] | int) -> KV:
    """The cache with `new` in the slots from `slot` on."""
    return jax.tree.map(
        lambda old, part: jax.lax.dynamic_update_slice_in_dim(old, part, slot, 2),
        cache,
        new,
    )
