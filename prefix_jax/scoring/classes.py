"""Scores of predicted classes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from prefix_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """How often each class was predicted for each; scikit-learn's definitions.

    A precision or recall whose divisor is 0 is 0 (scikit-learn's `zero_division=0`).
    """

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Row: the true class; column: the predicted one; in the order of the labels."""

    @classmethod
    def of(
        cls, predicted: Sequence[str], true: Sequence[str], labels: Sequence[str]
    ) -> "ClassReport":
        """Raises InputError for lists of different lengths, or no prediction."""
        if len(predicted) != len(true) or not predicted:
            raise InputError(
                f"{len(predicted)} predictions for {len(true)} true labels; expected "
                "as many, and one at least"
            )
        number = {label: index for index, label in enumerate(labels)}
        counts = np.zeros((len(labels), len(labels)), int)
        for one, other in zip(true, predicted, strict=True):
            counts[number[one], number[other]] += 1
        return cls(tuple(labels), tuple(tuple(row) for row in counts.tolist()))

    def to_dict(self) -> dict:
        """Everything, with the scores of each class, ready for JSON."""
        columns = zip(
            self.labels,
            self.precision,
            self.recall,
            self.f1,
            self.support,
            strict=True,
        )
        return {
            "labels": self.labels,
            "confusion": self.confusion,
            "per_class": {
                label: {"precision": p, "recall": r, "f1": f, "examples": n}
                for label, p, r, f, n in columns
            },
        }

    @property
    def _counts(self) -> Int[np.ndarray, "C C"]:
        return np.array(self.confusion)

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float(np.trace(self._counts) / self._counts.sum())

    @property
    def precision(self) -> list[float]:
        """Of each class: right ones of those predicted."""
        return _shares(np.diag(self._counts), self._counts.sum(0))

    @property
    def recall(self) -> list[float]:
        """Of each class: right ones of those that are it."""
        return _shares(np.diag(self._counts), self._counts.sum(1))

    @property
    def f1(self) -> list[float]:
        """Of each class: the harmonic mean of precision and recall."""
        counts = self._counts
        return _shares(2 * np.diag(counts), counts.sum(0) + counts.sum(1))

    @property
    def support(self) -> list[int]:
        """Of each class: how many are it."""
        return self._counts.sum(1).tolist()


def _shares(part: np.ndarray, whole: np.ndarray) -> list[float]:
    return (part / np.maximum(whole, 1)).tolist()


def macro(values: Sequence[float]) -> float:
    """The mean over classes, each counting alike."""
    return sum(values) / len(values)
