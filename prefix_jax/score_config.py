"""How outputs are scored, as a frozen dataclass."""

import dataclasses
from typing import Literal

from prefix_jax.checks import Section

TextMetric = Literal[
    "bleu",
    "chrf",
    "ter",
    "nist",
    "rouge1",
    "rouge2",
    "rougeL",
    "meteor",
    "cider",
    "coco_rougeL",
]
ClassMetric = Literal["accuracy", "macro_precision", "macro_recall", "macro_f1"]
Metric = Literal[TextMetric, ClassMetric]


@dataclasses.dataclass(frozen=True)
class ScoreConfig(Section):
    """How outputs are scored."""

    metrics: tuple[Metric, ...] = ()
    """What `evaluate` computes; (): what is usual for the task. `meteor`, `cider` and
    `coco_rougeL` need the extra `metrics` and Java."""
    label_likelihood: Literal["sum", "token"] = "sum"
    """A label's words are as likely as all of their tokens together, or as the
    geometric mean of them. `classification` only, as the next."""
    content_free: tuple[str, ...] = ()
    """Texts that say nothing, such as "N/A": label probabilities are divided by the
    mean of theirs (Zhao et al. 2021). (): they are not calibrated."""
    loss: bool = True
    """Measure the loss too, over every reference. It takes most of the time where
    sources have many references."""
