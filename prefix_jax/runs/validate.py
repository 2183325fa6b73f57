"""Loss and samples on held-out data, in training and after it."""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int32

from prefix_jax.config import DecodeConfig
from prefix_jax.data.batches import eval_batches
from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import encode_labels, encode_prompts, truncate_prompts
from prefix_jax.data_config import label_words
from prefix_jax.decoding.generate import generate
from prefix_jax.errors import InputError
from prefix_jax.mesh import put_batch
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.runs.prepare import Rows, Setup
from prefix_jax.runs.programs import eval_program
from prefix_jax.scoring.labels import label_probabilities


@dataclasses.dataclass(frozen=True)
class Validation:
    """Held-out loss at a step."""

    step: int
    loss: float
    """Nats per target token, over every reference."""
    tokens: int

    @property
    def perplexity(self) -> float:
        """Per target token."""
        return math.exp(min(self.loss, 700.0))


class Validator:
    """Measures the same held-out rows again and again with one compiled program."""

    def __init__(
        self,
        setup: Setup,
        held_out: Rows,
        batches: int | None = None,
        prefixes: Sequence[str] = (),
    ):
        """`batches`: read only so many; None: all. `prefixes`: the names in a bank, of
        which each row has one; then only `each` can be asked."""
        self._mesh = setup.mesh
        self._batch_size = setup.config.train.batch_size
        self._ids = None
        if prefixes:
            numbers = {name: number for number, name in enumerate(prefixes)}
            self._ids = [numbers[str(row.prefix)] for row in held_out.rows]
        self._lengths = np.array([len(row.tokens) for row in held_out.rows])
        self._step = eval_program(setup.mesh)
        rows = eval_batches(
            held_out.rows,
            batch_size=self._batch_size,
            buckets=held_out.buckets,
            pad_id=setup.pad_id,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            prefix_ids=self._ids,
        )
        self._batches = list(itertools.islice(rows, batches))

    def __len__(self) -> int:
        """Batches that a measurement reads; its `progress` hears of each."""
        return len(self._batches)

    def __call__(
        self,
        backbone: Backbone,
        prefix: KV | None,
        step: int = 0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Validation:
        """Mean loss over all target tokens."""
        sums = self._sums(backbone, prefix, progress)
        tokens = sum(int(part["tokens"]) for part in sums)
        loss = sum(float(part["nll"]) for part in sums) / max(tokens, 1)
        return Validation(step, loss, tokens)

    def each(
        self,
        backbone: Backbone,
        bank: KV,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Validation]:
        """For each prefix of the bank, the mean loss over its own rows' targets."""
        assert self._ids is not None
        nll, tokens = np.zeros(bank.number), np.zeros(bank.number)
        for number, part in enumerate(self._sums(backbone, bank, progress)):
            start = number * self._batch_size
            ids = np.zeros(self._batch_size, int)  # filled up as the batch is
            given = self._ids[start : start + self._batch_size]
            ids[: len(given)] = given
            nll += np.bincount(ids, part["row_nll"], bank.number)
            tokens += np.bincount(ids, part["row_tokens"], bank.number)
        return [
            Validation(0, total / max(count, 1), int(count))
            for total, count in zip(nll.tolist(), tokens.tolist(), strict=True)
        ]

    def _sums(self, backbone, prefix, progress) -> list[dict[str, jax.Array]]:
        self._check_room(backbone, prefix)
        sums = []
        for batch in self._batches:
            sums.append(self._step(backbone, prefix, put_batch(batch, self._mesh)))
            # One batch late, so that the device never waits for the host.
            if len(sums) > 1:
                jax.block_until_ready(sums[-2])
                progress(1)
        jax.block_until_ready(sums[-1:])
        progress(1)
        return sums

    def _check_room(self, backbone: Backbone, prefix: KV | None) -> None:
        """InputError for rows that have no positions left behind their prefix.

        A compiled program reads them without a word: rows may be padded, or hold
        several texts, so that it knows no row's length.
        """
        offsets = np.zeros(1, int) if prefix is None else np.asarray(prefix.offsets)
        own = offsets[self._ids] if self._ids and len(offsets) > 1 else offsets[0]
        # Of the last token nothing is read.
        needed = int(np.max(self._lengths - 1 + own, initial=0))
        if needed > (limit := backbone.config.n_positions):
            raise InputError(
                f"a row of the split and the prefix before it take {needed} positions; "
                f"the backbone has {limit}: lower data.max_length by "
                f"{needed - limit} or more, or shorten the prefix"
            )


@dataclasses.dataclass(frozen=True)
class Written:
    """Texts written for sources, beside what was expected."""

    examples: Sequence[Example]
    texts: Sequence[str]
    cut_sources: int
    """Sources that lost their end, so that prefix, prompt and new tokens fit."""
    dropped_sources: int = 0
    """Those that were left out instead (`data.overflow`); not among `examples`."""
    probabilities: Float[np.ndarray, "N C"] | None = None
    """In classification, of each label in the order of `data.labels`; then the texts
    are the words of the likeliest."""

    def only(self, subset: str) -> "Written":
        """What was written for the examples of a subset."""
        kept = [i for i, one in enumerate(self.examples) if one.subset == subset]
        own = self.probabilities
        return dataclasses.replace(
            self,
            examples=[self.examples[i] for i in kept],
            texts=[self.texts[i] for i in kept],
            probabilities=None if own is None else own[kept],
        )


def write_texts(
    setup: Setup,
    backbone: Backbone,
    prefix: KV | None,
    examples: Sequence[Example],
    decode: DecodeConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Decode the target of every example's source, in the format of training.

    In classification, find the likeliest label. Sources too long for the backbone's
    positions are treated as `data.overflow` says: they lose their end (so they do in
    classification), are left out, or are an InputError. So is a backbone with no
    position left for a prompt.
    """
    [written] = write_each(setup, backbone, prefix, [examples], decode, progress)
    return written


def write_each(
    setup: Setup,
    backbone: Backbone,
    bank: KV | None,
    groups: Sequence[Sequence[Example]],
    decode: DecodeConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Written]:
    """As `write_texts` the examples of each group with its prefix of the bank.

    Batches mix the groups; each text is what its prefix alone gives.
    """
    if setup.config.data.task == "classification":
        return _classify_each(setup, backbone, bank, groups, progress)
    offsets = np.zeros(1, int) if bank is None else np.asarray(bank.offsets)
    prompts, fitting, cuts, dropped = [], [], [], []
    for group, offset in zip(
        groups, np.broadcast_to(offsets, len(groups)), strict=True
    ):
        room = backbone.config.n_positions - int(offset) - decode.max_new_tokens
        fits, whole = _fitting(setup, group, room)
        kept, cut = truncate_prompts(whole, room)
        prompts += kept
        fitting.append(fits)
        dropped.append(len(group) - len(fits))
        cuts.append(cut)
    groups = fitting
    ids = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    texts = generate(
        backbone,
        setup.tokenizer,
        prompts,
        prefix=bank,
        prefix_ids=None if bank is None else ids,
        decode=decode,
        mesh=setup.mesh,
        progress=progress,
    )
    rest = iter(text.strip() for text in texts)
    return [
        Written(group, list(itertools.islice(rest, len(group))), cut, left_out)
        for group, cut, left_out in zip(groups, cuts, dropped, strict=True)
    ]


def _fitting(
    setup: Setup, group: Sequence[Example], room: int
) -> tuple[Sequence[Example], list[Int32[np.ndarray, "_"]]]:
    """The examples to decode and their prompts, some to be cut to `room` tokens."""
    data = setup.config.data
    prompts = encode_prompts(
        [example.source for example in group], setup.tokenizer, data.separator
    )
    fits = [len(prompt) <= room for prompt in prompts]
    if room < 1 or all(fits) or data.overflow == "truncate_source":
        return group, prompts
    if data.overflow == "error":
        source = group[fits.index(False)].source
        raise InputError(
            f'the source "{textwrap.shorten(source, 80)}" has '
            f"{len(prompts[fits.index(False)])} tokens; prefix and "
            f"decode.max_new_tokens leave {room} positions: lower "
            'decode.max_new_tokens, or set data.overflow to "truncate_source"'
        )
    return (
        [example for example, fit in zip(group, fits, strict=True) if fit],
        [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit],
    )


def _classify_each(setup, backbone, bank, groups, progress) -> list[Written]:
    """The likeliest label of every example; over-long sources lose their end."""
    config, tokenizer = setup.config, setup.tokenizer
    separator = config.data.separator
    words = [*label_words(config.data.labels).values()]
    longest = max(len(label) for label in encode_labels(words, tokenizer))
    prompts, cuts = [], []
    for group in groups:
        kept, cut = truncate_prompts(
            encode_prompts([example.source for example in group], tokenizer, separator),
            config.data.max_length - 1 - longest,  # a row keeps a place for the end
        )
        prompts += kept
        cuts.append(cut)
    ids = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    probabilities = label_probabilities(
        backbone,
        tokenizer,
        prompts,
        words,
        prefix=bank,
        prefix_ids=None if bank is None else ids,
        score=config.score,
        separator=separator,
        batch_size=config.train.batch_size,
        mesh=setup.mesh,
        progress=progress,
    )
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return [
        Written(group, [words[best] for best in own.argmax(-1)], cut, probabilities=own)
        for group, cut, own in zip(
            groups, cuts, np.split(probabilities, ends), strict=True
        )
    ]
