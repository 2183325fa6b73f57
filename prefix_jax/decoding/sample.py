"""Greedy decoding and sampling: one compiled loop over a preallocated cache."""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from prefix_jax.decoding.context import (
    Context,
    empty_caches,
    read_prompts,
    read_token,
    unrolled,
)
from prefix_jax.decoding.rules import Rules, likeliest, restrict, truncate
from prefix_jax.decoding.stops import START
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.layers import Slots


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """B prompts, each continued by G sequences of at most M tokens."""

    number: Int[Array, ""]
    """Tokens written so far."""
    tokens: Int[Array, "B G M"]
    lengths: Int[Array, "B G"]
    """Tokens of each sequence, its end token (if it wrote one) included."""
    log_probs: Float[Array, "B G"]
    """Of those tokens, under the model itself, before any rule."""
    done: Bool[Array, "B G"]
    stop_state: Int[Array, "B G"]
    keys: Key[Array, "B G"]
    """One per sequence, [B G]: what a row draws depends on no other row."""
    written: list[Slots]


def start_sampling(
    backbone: Backbone,
    prefix: KV | None,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    seeds: UInt32[Array, "B 2"],
    stops: Int[Array, "states V"] | None,
    *,
    group: int,
    max_new_tokens: int,
    rules: Rules,
) -> tuple[Context, Sampled]:
    """Read the prompts and write the first token.

    What a prompt draws depends on its `seeds` alone: a seed, and which of that seed's
    keys is the prompt's.
    Prompts without a token only fill the batch: nothing is written after them.
    """
    backbone = unrolled(backbone)
    context, logits = read_prompts(backbone, prefix, tokens, mask)
    rows = len(tokens)
    shape = (rows, group)

    def own_keys(seed):
        key = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
        return jax.random.split(key, group)

    state = Sampled(
        number=jnp.int32(0),
        tokens=jnp.zeros((*shape, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape),
        done=jnp.broadcast_to(~mask.any(-1, keepdims=True), shape),
        stop_state=jnp.full(shape, START),
        keys=jax.vmap(own_keys)(seeds),
        written=empty_caches(backbone, rows, max_new_tokens * group),
    )
    logits = jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1]))
    return context, _write(context, state, logits, stops, rules)


def go_on_sampling(
    backbone: Backbone,
    context: Context,
    state: Sampled,
    stops: Int[Array, "states V"] | None,
    until: Int[Array, ""] | int,
    *,
    rules: Rules,
) -> Sampled:
    """Write until each sequence has ended or has `until` tokens."""
    backbone = unrolled(backbone)
    group, most = state.tokens.shape[1:]
    own = jnp.arange(group, dtype=jnp.int32)[None, :, None]
    lineage = jnp.broadcast_to(own, state.tokens.shape)

    def unfinished(state):
        return (state.number < jnp.minimum(until, most)) & ~state.done.all()

    def advance(state):
        last = state.number - 1
        token = jax.lax.dynamic_index_in_dim(state.tokens, last, 2, keepdims=False)
        written, logits = read_token(
            backbone, context, state.written, lineage, token, last
        )
        state = dataclasses.replace(state, written=written)
        return _write(context, state, logits, stops, rules)

    return jax.lax.while_loop(unfinished, advance, state)


def _write(context, state, logits, stops, rules) -> Sampled:
    """Choose the next token of each sequence and put it down."""
    rows, group, vocabulary = logits.shape
    number = state.number
    scores = logits.reshape(rows * group, vocabulary)
    if rules.changes_scores:
        text, real = written_text(context, state.tokens, number)
        length = context.tokens.shape[1]
        scores = restrict(scores, text, real, length + number, number, rules)
    if rules.sample:
        keys = state.keys.reshape(rows * group)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        token = jax.vmap(jax.random.categorical)(keys, truncate(scores, rules))
    else:
        token = likeliest(scores)
    token = jnp.where(state.done, 0, token.reshape(rows, group).astype(jnp.int32))
    chosen = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
    chosen -= jax.nn.logsumexp(logits, -1)
    done = state.done | is_end(token, rules.end)
    stop_state = state.stop_state
    if stops is not None:
        stop_state = jnp.where(done, stop_state, stops[stop_state, token])
        done |= stop_state == len(stops) - 1
    return dataclasses.replace(
        state,
        number=number + 1,
        tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, number, 2),
        lengths=state.lengths + ~state.done,
        log_probs=state.log_probs + jnp.where(state.done, 0, chosen),
        done=done,
        stop_state=stop_state,
    )


def is_end(token: Int[Array, "*rows"], end: tuple[int, ...]) -> Bool[Array, "*rows"]:
    """Whether a token ends its text."""
    if not end:
        return jnp.zeros(token.shape, bool)
    return (token[..., None] == jnp.array(end)).any(-1)


def written_text(
    context: Context, tokens: Int[Array, "B G M"], number: Int[Array, ""]
) -> tuple[Int[Array, "R S"], Bool[Array, "R S"]]:
    """Prompt and new tokens of all B*G sequences, and which of them are there."""
    rows, group, most = tokens.shape
    prompt = jnp.repeat(context.tokens, group, 0)
    mask = jnp.repeat(context.mask, group, 0)
    there = jnp.broadcast_to(jnp.arange(most) < number, (rows * group, most))
    text = jnp.concatenate([prompt, tokens.reshape(rows * group, most)], 1)
    return text, jnp.concatenate([mask, there], 1)


def sample(
    backbone: Backbone,
    prefix: KV | None,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    seeds: UInt32[Array, "B 2"],
    stops: Int[Array, "states V"] | None = None,
    *,
    group: int = 1,
    max_new_tokens: int,
    rules: Rules = Rules(),
) -> Sampled:
    """The whole of it as one program: prompts in, finished sequences out."""
    context, state = start_sampling(
        backbone,
        prefix,
        tokens,
        mask,
        seeds,
        stops,
        group=group,
        max_new_tokens=max_new_tokens,
        rules=rules,
    )
    return go_on_sampling(backbone, context, state, stops, max_new_tokens, rules=rules)
