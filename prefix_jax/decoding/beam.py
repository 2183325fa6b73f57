"""Beam search as transformers defines it, in one compiled loop.

Every prompt keeps W running sequences and the W best finished ones. A step looks at the
2W best continuations: those that end (and are among the first W) compete for the
finished places with their penalised score, the best W of the others run on. Scores,
penalties and stopping are those of transformers' `_beam_search`
(generation/utils.py), per prompt, so no result depends on what else is in the batch.
"""

import dataclasses
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefix_jax.decoding.context import (
    Context,
    empty_caches,
    read_prompts,
    read_token,
    unrolled,
)
from prefix_jax.decoding.rules import Rules, restrict
from prefix_jax.decoding.sample import is_end, written_text
from prefix_jax.decoding.stops import START
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.layers import Slots

EarlyStopping = Literal["no", "yes", "never"]
NOT_YET = -1e9
"""Score of a place that nothing has taken."""


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """W sequences of at most M tokens for each of B prompts."""

    tokens: Int[Array, "B W M"]
    lengths: Int[Array, "B W"]
    scores: Float[Array, "B W"]
    """What they are ranked by: summed log-probabilities (running), or those divided by
    length ** length_penalty (finished); after the rules."""
    log_probs: Float[Array, "B W"]
    """Summed log-probabilities under the model itself, before any rule."""
    done: Bool[Array, "B W"]

    def at(self, index: Int[Array, "B n"]) -> "Beams":
        """Of each prompt, the sequences `index`."""
        return jax.tree.map(lambda x: _choose(x, index), self)

    def beside(self, other: "Beams") -> "Beams":
        """Both, for each prompt."""
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), self, other)


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    number: Int[Array, ""]
    running: Beams
    finished: Beams
    open: Bool[Array, " B"]
    """Prompts whose finished sequences could still be beaten."""
    stuck: Bool[Array, ""]
    """Nothing can be continued."""
    stop_state: Int[Array, "B W"]
    lineage: Int[Array, "B W M"]
    written: list[Slots]


def beam_search(
    backbone: Backbone,
    prefix: KV | None,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    stops: Int[Array, "states V"] | None = None,
    *,
    width: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = "no",
    rules: Rules = Rules(),
) -> Beams:
    """The W best sequences after each prompt, best first.

    Prompts without a token only fill the batch: nothing waits for them.

    `early_stopping`: `yes` ends a prompt when W sequences are finished; `no` when the
    best running one, were it to end now, is worse than all of them; `never` only when
    it cannot become better (transformers' True, False and "never").
    """
    backbone = unrolled(backbone)
    context, logits = read_prompts(backbone, prefix, tokens, mask)
    rows, most = len(tokens), max_new_tokens
    best_length = most if early_stopping == "never" and length_penalty > 0 else None

    def blank(scores):
        return Beams(
            tokens=jnp.zeros((rows, width, most), jnp.int32),
            lengths=jnp.zeros((rows, width), jnp.int32),
            scores=jnp.broadcast_to(scores, (rows, width)),
            log_probs=jnp.zeros((rows, width)),
            done=jnp.zeros((rows, width), bool),
        )

    search = _Search(
        number=jnp.int32(0),
        # All are alike at first: only one may be continued.
        running=blank(jnp.where(jnp.arange(width) == 0, 0.0, NOT_YET)),
        finished=blank(jnp.full(width, NOT_YET)),
        open=mask.any(-1),
        stuck=jnp.array(False),
        stop_state=jnp.full((rows, width), START),
        lineage=jnp.zeros((rows, width, most), jnp.int32),
        written=empty_caches(backbone, rows, most * width),
    )

    def choose(search, logits):
        candidates, parents, states = _continuations(
            context, search, logits, stops, rules
        )
        number = search.number + 1
        # With every sequence at its limit, all of them end.
        ends = candidates.done | (number == most)
        finished = _finish(
            search, candidates, ends, number, length_penalty, early_stopping
        )
        running_scores = candidates.scores + jnp.where(ends, NOT_YET, 0.0)
        scores, kept = jax.lax.top_k(running_scores, width)
        running = dataclasses.replace(candidates.at(kept), scores=scores)
        parents = _choose(parents, kept)
        length = number if best_length is None else best_length
        reachable = scores[:, 0] / length**length_penalty
        worst = jnp.where(finished.done, finished.scores.min(1, keepdims=True), NOT_YET)
        return dataclasses.replace(
            search,
            number=number,
            running=running,
            finished=finished,
            open=search.open & (reachable[:, None] > worst).any(1),
            stuck=ends.all(),
            stop_state=_choose(states, kept),
            lineage=_choose(search.lineage, parents),
        )

    def unfinished(search):
        going = search.open
        if early_stopping == "yes":
            going &= ~search.finished.done.all(1)
        return going.any() & ~search.stuck

    def advance(search):
        last = search.number - 1
        token = jax.lax.dynamic_index_in_dim(
            search.running.tokens, last, 2, keepdims=False
        )
        own = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (rows, width))
        lineage = jax.lax.dynamic_update_index_in_dim(search.lineage, own, last, 2)
        written, logits = read_token(
            backbone, context, search.written, lineage, token, last
        )
        search = dataclasses.replace(search, written=written, lineage=lineage)
        return choose(search, logits)

    first = jnp.broadcast_to(logits[:, None], (rows, width, logits.shape[-1]))
    search = choose(search, first)
    return jax.lax.while_loop(unfinished, advance, search).finished


def _continuations(context: Context, search: _Search, logits, stops, rules: Rules):
    """The best 2W one-token continuations (Beams), their parents and stop states.

    More where several tokens end a text: W of them must be able to go on.
    """
    rows, width, vocabulary = logits.shape
    number, running = search.number, search.running
    plain = jax.nn.log_softmax(logits)
    scores = plain
    if rules.changes_scores:
        text, real = written_text(context, running.tokens, number)
        length = context.tokens.shape[1]
        flat = scores.reshape(rows * width, vocabulary)
        flat = restrict(flat, text, real, length + number, number, rules)
        scores = flat.reshape(scores.shape)
    total = (scores + running.scores[..., None]).reshape(rows, -1)
    keep = max(2, 1 + len(rules.end)) * width
    best, index = jax.lax.top_k(total, keep)
    parents, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    candidates = running.at(parents)
    gained = jnp.take_along_axis(plain.reshape(rows, -1), index, 1)
    done = is_end(token, rules.end)
    states = _choose(search.stop_state, parents)
    if stops is not None:
        states = stops[states, token]
        done |= states == len(stops) - 1
    tokens = jax.lax.dynamic_update_index_in_dim(candidates.tokens, token, number, 2)
    return (
        Beams(
            tokens, candidates.lengths + 1, best, candidates.log_probs + gained, done
        ),
        parents,
        states,
    )


def _finish(search, candidates, ends, number, length_penalty, early_stopping) -> Beams:
    """The best W of what was finished and what just ended among the first W."""
    finished, width = search.finished, search.finished.scores.shape[1]
    ended = ends & (jnp.arange(ends.shape[1]) < width)
    scores = candidates.scores / number**length_penalty
    closed = ~search.open
    if early_stopping == "yes":
        closed |= finished.done.all(1)
    scores += jnp.where(closed[:, None], NOT_YET, 0.0)
    scores += jnp.where(ended, 0.0, NOT_YET)
    new = dataclasses.replace(candidates, scores=scores, done=ended)
    merged = finished.beside(new)
    return merged.at(jax.lax.top_k(merged.scores, width)[1])


def _choose(x: Array, index: Int[Array, "B n"]) -> Array:
    """Along axis 1, for each row, the entries `index`."""
    return jax.vmap(lambda row, chosen: row[chosen])(x, index)
