"""Loss and samples on held-out data, in training and after it."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from prefix_jax.config import DecodeConfig
from prefix_jax.data.batches import eval_batches
from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import encode_prompts
from prefix_jax.decoding.generate import generate
from prefix_jax.learning.step import make_eval_step
from prefix_jax.mesh import put_batch
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV
from prefix_jax.runs.prepare import Rows, Setup
from prefix_jax.scoring.text import bleu


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

    def __init__(self, setup: Setup, held_out: Rows, batches: int | None = None):
        """`batches`: read only so many; None: all."""
        self._mesh = setup.mesh
        self._step = make_eval_step(setup.mesh)
        rows = eval_batches(
            held_out.rows,
            batch_size=setup.config.train.batch_size,
            buckets=held_out.buckets,
            pad_id=setup.pad_id,
        )
        self._batches = list(rows)[:batches]

    def __call__(self, backbone: GPT2, prefix: KV | None, step: int = 0) -> Validation:
        """Mean loss over all target tokens."""
        sums = [
            self._step(backbone, prefix, put_batch(batch, self._mesh))
            for batch in self._batches
        ]
        tokens = sum(int(part["tokens"]) for part in sums)
        loss = sum(float(part["nll"]) for part in sums) / max(tokens, 1)
        return Validation(step, loss, tokens)


@dataclasses.dataclass(frozen=True)
class Written:
    """Texts written for sources, beside what was expected."""

    examples: Sequence[Example]
    texts: Sequence[str]

    @property
    def bleu(self) -> float:
        """Corpus BLEU over all references."""
        return bleu(self.texts, [example.references for example in self.examples])


def write_texts(
    setup: Setup,
    backbone: GPT2,
    prefix: KV | None,
    examples: Sequence[Example],
    decode: DecodeConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Decode the target of every example's source, in the format of training."""
    prompts = encode_prompts([example.source for example in examples], setup.tokenizer)
    texts = generate(
        backbone,
        setup.tokenizer,
        prompts,
        prefix=prefix,
        decode=decode,
        progress=progress,
    )
    return Written(examples, [text.strip() for text in texts])
