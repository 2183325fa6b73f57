"""Classification by a language model: how likely each label's words are."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerFast

from prefix_jax.data.batches import choose_buckets, eval_batches
from prefix_jax.data.tokens import Row, encode_labels, encode_prompts
from prefix_jax.errors import InputError
from prefix_jax.learning.step import make_eval_step
from prefix_jax.mesh import put_batch
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV, check_prefix_ids
from prefix_jax.score_config import ScoreConfig

Tokens = Int[np.ndarray, "_"]

# Each has a compiled program of its own.
_eval_step = functools.cache(make_eval_step)


def label_probabilities(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Tokens],
    words: Sequence[str],
    *,
    prefix: KV | None = None,
    prefix_ids: Sequence[int] | Int[np.ndarray, "_"] | None = None,
    score: ScoreConfig = ScoreConfig(),
    separator: str | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Float[np.ndarray, "N C"]:
    """Probability of each of C labels, which are `words`, after each of N prompts.

    Prompts are tokens as `data.tokens.encode_prompts` makes them; `prefix_ids` says
    which prefix of a bank is each prompt's. Where `score.content_free` has texts, each
    prefix is calibrated by what it says after them and the `separator` of the prompts.
    `progress` hears how many prompts are done.
    Raises InputError as `encode_labels` and `log_likelihoods`.
    """
    labels = encode_labels(words, tokenizer)
    lengths = np.array([len(label) for label in labels])
    number = 1 if prefix is None else prefix.number
    ids = check_prefix_ids(prefix, prefix_ids, len(prompts))

    def likelihoods(prompts, ids, progress):
        found = log_likelihoods(
            backbone,
            prompts,
            labels,
            prefix=prefix,
            prefix_ids=None if prefix is None else ids,
            batch_size=batch_size,
            mesh=mesh,
            progress=progress,
        )
        return found / lengths if score.label_likelihood == "token" else found

    found = likelihoods(prompts, ids, progress)
    if not score.content_free:
        return normalised(found)
    free = encode_prompts(score.content_free, tokenizer, separator)
    of_free = likelihoods(
        free * number, np.repeat(np.arange(number), len(free)), lambda done: None
    ).reshape(number, len(free), len(words))
    return np.stack(
        [
            calibrated(row, of_free[prefix])
            for row, prefix in zip(found, ids, strict=True)
        ]
    )


def log_likelihoods(
    backbone: Backbone,
    prompts: Sequence[Tokens],
    continuations: Sequence[Tokens],
    *,
    prefix: KV | None = None,
    prefix_ids: Int[np.ndarray, "_"] | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Float[np.ndarray, "N C"]:
    """log P(continuation | prefix, prompt) in nats, for each of each.

    A prompt is read once for every continuation, in batches of `batch_size` rows over
    `mesh`. Raises InputError where a row does not fit the backbone's positions.
    """
    rows = [
        Row(
            np.concatenate([prompt, continuation]).astype(np.int32),
            np.arange(len(prompt) + len(continuation)) >= len(prompt),
        )
        for prompt in prompts
        for continuation in continuations
    ]
    lengths = np.array([len(row.tokens) for row in rows])
    room = backbone.config.n_positions - (prefix.position_offset if prefix else 0)
    if (longest := lengths.max(initial=0)) > room:
        raise InputError(
            f"a text and a label have {longest} tokens; beside the (longest) prefix "
            f"the backbone's {backbone.config.n_positions} positions leave {room}: "
            "shorten the text"
        )
    # Rows of like lengths together, for less padding.
    order = np.argsort(lengths, kind="stable")
    ids = None
    of_prompts = check_prefix_ids(prefix, prefix_ids, len(prompts))
    if prefix is not None and prefix.number > 1:
        ids = np.repeat(of_prompts, len(continuations))[order].tolist()
    batches = eval_batches(
        [rows[number] for number in order],
        batch_size=batch_size,
        buckets=choose_buckets(lengths.tolist(), room=room) if rows else (),
        pad_id=0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prefix_ids=ids,
    )
    found = np.zeros(len(rows))
    step, done = _eval_step(mesh), 0
    for batch in batches:
        chosen = order[done : done + batch_size]
        placed = jax.device_put(batch) if mesh is None else put_batch(batch, mesh)
        nll = np.asarray(step(backbone, prefix, placed)["row_nll"])
        found[chosen] = -nll[: len(chosen)]
        progress(
            (done + len(chosen)) // len(continuations) - done // len(continuations)
        )
        done += len(chosen)
    return found.reshape(len(prompts), len(continuations))


def normalised(log_likelihoods: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N C"]:
    """Probabilities that sum to 1 over the labels."""
    shifted = log_likelihoods - log_likelihoods.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(-1, keepdims=True)


def calibrated(
    log_likelihoods: Float[np.ndarray, "*N C"], content_free: Float[np.ndarray, "M C"]
) -> Float[np.ndarray, "*N C"]:
    """Label probabilities divided by those of texts that say nothing, normalised.

    The mean over the M texts is what is divided by (Zhao et al. 2021, "Calibrate Before
    Use", section 5): a single such text gets 1/C for each label.
    """
    usual = normalised(content_free).mean(0)
    return normalised(log_likelihoods - np.log(np.maximum(usual, 1e-300)))
