"""From prompts to texts; the loops are in sample and beam."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.program import write
from prefix_jax.decoding.request import Generated, Prompt, Request
from prefix_jax.decoding.sample import go_on_sampling, start_sampling
from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV

NEIGHBOURS = 4
"""Batches among whose prompts `each_sequences` looks for those of like lengths."""


def generate(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    prefix: KV | None = None,
    prefix_ids: Sequence[int] | Int[np.ndarray, "_"] | None = None,
    seeds: Sequence[int | None] | None = None,
    decode: DecodeConfig = DecodeConfig(),
    mesh: Mesh | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The (best) text that the backbone, with the prefix, writes after each prompt.

    Arguments and errors as for `generate_sequences`.
    """
    found = generate_sequences(
        backbone,
        tokenizer,
        prompts,
        prefix=prefix,
        prefix_ids=prefix_ids,
        seeds=seeds,
        decode=decode,
        mesh=mesh,
        progress=progress,
    )
    return [sequences[0].text for sequences in found]


def generate_sequences(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    prefix: KV | None = None,
    prefix_ids: Sequence[int] | Int[np.ndarray, "_"] | None = None,
    seeds: Sequence[int | None] | None = None,
    decode: DecodeConfig = DecodeConfig(),
    mesh: Mesh | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[Generated]]:
    """After each prompt, `decode.sequences` texts; from beams, the best first.

    Prompts are texts to continue, in which special tokens are text like any other, or
    token ids: of a task, a prefix was trained with what `encode_prompts` makes. With a
    bank of prefixes (`compose.bank`), `prefix_ids` says which is each prompt's. A
    prompt's texts do not depend on the other prompts, but samples on its number there;
    with `seeds`, one for each prompt, not even on that: they are what `decode.seed`
    gives the prompt alone (None: as without). `progress` hears how many are done.
    The devices of a `mesh` (`make_mesh`) share the rows of each batch over its axis
    `data`; its processes are all given the same.
    Raises InputError for an unknown prefix, where prefix + prompt + new tokens exceed
    the backbone's positions (the last has one too, though nothing reads it), and for
    seeds that nothing would use.

    The backbone is best loaded with `unroll=True`: each call unrolls any other, which
    copies its layers.
    """
    request = Request.make(
        backbone, tokenizer, prompts, prefix, prefix_ids, decode, seeds, mesh
    )
    texts: list[list[Generated]] = [[] for _ in request.prompts]
    for batch in request.batches():
        for number, sequences in zip(batch, request.write(batch), strict=True):
            texts[number] = sequences
        progress(len(batch))
    return texts


def each_sequences(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    prefix: KV | None = None,
    prefix_ids: Sequence[int] | Int[np.ndarray, "_"] | None = None,
    seeds: Sequence[int | None] | None = None,
    decode: DecodeConfig = DecodeConfig(),
    mesh: Mesh | None = None,
) -> Iterator[list[Generated]]:
    """What `generate_sequences` returns, a few batches after the other, in order.

    Raises as it does, at once. Of many prompts that differ much in length it takes a
    little longer: those decoded together are alike among neighbours only.
    """
    request = Request.make(
        backbone, tokenizer, prompts, prefix, prefix_ids, decode, seeds, mesh
    )
    return request.each(among=NEIGHBOURS)


def stream(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    prefix: KV | None = None,
    decode: DecodeConfig = DecodeConfig(),
    tokens_at_a_time: int = 4,
) -> Iterator[str]:
    """The text for one prompt, in pieces as it is written: joined, `generate`'s text.

    Raises InputError as `generate` does, and for beam search, which has no text to show
    before its end.
    """
    if decode.method == "beam":
        raise InputError(
            'beam search cannot stream; set decode.method to "greedy" or "sample"'
        )
    request = Request.make(backbone, tokenizer, [prompt], prefix, None, decode)
    inputs = request.inputs([0])
    stops = inputs.pop("stops")
    context, state = _start(
        request.backbone,
        **inputs,
        stops=stops,
        group=1,
        max_new_tokens=decode.max_new_tokens,
        rules=request.method.rules,
    )
    shown = ""
    while True:
        text, finished = request.text_so_far(state)
        # A character or a stop string may still be incomplete.
        ready = text if finished else request.certain(text)
        if ready.startswith(shown) and len(ready) > len(shown):
            yield ready[len(shown) :]
            shown = ready
        if finished:
            return
        until = int(state.number) + tokens_at_a_time
        state = _go_on(
            request.backbone, context, state, stops, until, rules=request.method.rules
        )


_start = partial(jax.jit, static_argnames=("group", "max_new_tokens", "rules"))(
    start_sampling
)
_go_on = partial(jax.jit, static_argnames="rules", donate_argnums=2)(go_on_sampling)


def compiled_programs() -> int:
    """Decoding programs that this process has compiled so far.

    These are the reading of prompts and the loops over tokens, in all shapes; not the
    small ones that lay out weights and prefixes.
    """
    # jax has no public name for it yet.
    return sum(
        getattr(loop, "_cache_size")()  # noqa: B009
        for loop in (write, _start, _go_on)
    )
