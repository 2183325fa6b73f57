"""Scores against their definition."""

import pytest
import sacrebleu

from prefix_jax.errors import InputError
from prefix_jax.scoring.text import bleu


def test_a_missing_reference_is_not_an_empty_one():
    """A short text beside one long reference pays for its shortness."""
    texts = ["the mill is old", "the mill by the river is old"]
    references = [["the mill by the river is very old indeed"], [texts[1], texts[1]]]
    alone = sacrebleu.corpus_bleu(texts, [[r[0] for r in references]])
    assert alone.bp < 1
    # The same f64 arithmetic up to the order of its terms.
    assert bleu(texts, references) == pytest.approx(alone.score, rel=1e-12)


def test_texts_without_references_are_refused():
    with pytest.raises(InputError, match="at least one reference"):
        bleu(["a"], [[]])
    with pytest.raises(InputError, match="2 texts but references for 1"):
        bleu(["a", "b"], [["a"]])
