"""What may be written next: penalties, bans and the truncations of sampling.

Each rule means what the logits processor of the same name in transformers means
(generation/logits_process.py), except that padding never counts as text: there its
repetition penalty passes over padding, but its n-grams do not.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefix_jax.config import DecodeConfig

BARRED = -jnp.inf


@dataclasses.dataclass(frozen=True)
class Rules:
    """The settings that a decoding program is compiled for."""

    end: tuple[int, ...] = ()
    """Tokens that end a text."""
    min_new_tokens: int = 0
    barred: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @classmethod
    def of(cls, decode: DecodeConfig, end: Sequence[int]) -> "Rules":
        """As a recipe asks for; `end` are the tokens that end a text."""
        return cls(
            end=tuple(end),
            min_new_tokens=decode.min_new_tokens,
            barred=decode.barred_tokens,
            repetition_penalty=decode.repetition_penalty,
            no_repeat_ngram=decode.no_repeat_ngram,
            sample=decode.method == "sample",
            temperature=decode.temperature,
            top_k=decode.top_k,
            top_p=decode.top_p,
            min_p=decode.min_p,
        )

    @property
    def changes_scores(self) -> bool:
        """Whether `restrict` does anything."""
        return self != dataclasses.replace(
            self,
            min_new_tokens=0,
            barred=(),
            repetition_penalty=1.0,
            no_repeat_ngram=0,
        )


def restrict(
    scores: Float[Array, "R V"],
    text: Int[Array, "R S"],
    real: Bool[Array, "R S"],
    stop: Int[Array, ""] | int,
    new: Int[Array, ""] | int,
    rules: Rules,
) -> Float[Array, "R V"]:
    """Penalties and bans on each row's next token.

    `text` holds the prompt, padded on the left, and what was written after it, up to
    index `stop`; `real` marks its tokens. `new` tokens were written so far.
    """
    rows = jnp.arange(len(scores))[:, None]
    if rules.repetition_penalty != 1.0:
        written = jnp.zeros(scores.shape, bool).at[rows, text].max(real)
        penalised = jnp.where(
            scores < 0,
            scores * rules.repetition_penalty,
            scores / rules.repetition_penalty,
        )
        scores = jnp.where(written, penalised, scores)
    if rules.no_repeat_ngram:
        follows, repeats = _ngram_followers(text, real, stop, rules.no_repeat_ngram)
        banned = jnp.zeros(scores.shape, bool).at[rows, follows].max(repeats)
        scores = jnp.where(banned, BARRED, scores)
    if rules.barred:
        scores = scores.at[:, jnp.array(rules.barred)].set(BARRED)
    if rules.min_new_tokens and rules.end:
        ended = scores.at[:, jnp.array(rules.end)].set(BARRED)
        scores = jnp.where(new < rules.min_new_tokens, ended, scores)
    return scores


def _ngram_followers(text, real, stop, n):
    """Tokens that follow an earlier copy of the last n - 1, and where that is so."""
    length = text.shape[1]
    windows = max(length - n + 1, 0)
    repeats = real[:, :windows]
    for i in range(n - 1):
        last = jnp.take(text, stop - (n - 1) + i, axis=1, mode="clip")[:, None]
        repeats &= text[:, i : i + windows] == last
    follower = jnp.arange(windows) + n - 1
    # The text itself must hold n - 1 tokens, and the follower stand within it.
    held = real.sum(-1, keepdims=True) >= n
    return text[:, n - 1 :], repeats & (follower < stop) & held


def likeliest(scores: Float[Array, "R V"]) -> Int[Array, " R"]:
    """The first token of each row's highest score; the last token where a score is NaN.

    As argmax, by two plain reductions: one of pairs is not vectorised on CPUs.
    """
    vocabulary = scores.shape[-1]
    best = scores == scores.max(-1, keepdims=True)
    first = jnp.where(best, jnp.arange(vocabulary), vocabulary - 1)
    return first.min(-1)


def truncate(scores: Float[Array, "R V"], rules: Rules) -> Float[Array, "R V"]:
    """Scores to sample from: temperature, then top-k, top-p, min-p, as transformers.

    Ties at a threshold are all kept.
    """
    scores = scores / rules.temperature
    if rules.top_k is not None and rules.top_k < scores.shape[-1]:
        least = jax.lax.top_k(scores, rules.top_k)[0][:, -1:]
        scores = jnp.where(scores < least, BARRED, scores)
    if rules.top_p is not None and rules.top_p < 1.0:
        chances = jax.nn.softmax(scores)
        scores = jnp.where(chances < _nucleus(chances, rules.top_p), BARRED, scores)
    if rules.min_p is not None:
        highest = scores.max(-1, keepdims=True)
        scores = jnp.where(scores < highest + jnp.log(rules.min_p), BARRED, scores)
    return scores


def _nucleus(chances, top_p):
    """The probability of the least likely token of the smallest set with mass `top_p`.

    Found by halving an interval on the bits of the f32 threshold, which is exact and,
    unlike a sort of the vocabulary, fast everywhere: positive floats order as their
    bits.
    """

    def halve(_, bounds):
        low, high = bounds  # mass(>= low) >= top_p > mass(>= high)
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        mass = jnp.where(chances >= threshold, chances, 0).sum(-1, keepdims=True)
        enough = mass >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    highest = chances.max(-1, keepdims=True)
    low = jnp.zeros(highest.shape, jnp.int32)
    high = jax.lax.bitcast_convert_type(highest, jnp.int32) + 1
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
