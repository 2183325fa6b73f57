"""Scores against independent implementations, and against their definitions."""

import math
import random
import shutil
import sys

import numpy as np
import pytest
import sacrebleu

from prefix_jax.errors import InputError
from prefix_jax.scoring import captions
from prefix_jax.scoring.classes import ClassReport, macro
from prefix_jax.scoring.metrics import (
    NAMES,
    USUAL,
    class_scores,
    metrics_of,
    text_scores,
)
from prefix_jax.scoring.nist import nist
from prefix_jax.scoring.text import bleu, chrf, rouge, ter

TEXT = "the old mill by a river is in Aarhus , and it was £ 30 ."
WORDS = TEXT.split()


def sentences(number, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 15))) for _ in range(number)]


TEXTS = sentences(12)
SINGLE = [[text] for text in sentences(12, seed=1)]
SEVERAL = [sentences(1 + n % 3, seed=n + 2) for n in range(12)]
EQUAL = [sentences(3, seed=n + 2) for n in range(12)]


@pytest.mark.parametrize(
    ("score", "independent"),
    [
        (bleu, sacrebleu.corpus_bleu),
        (chrf, sacrebleu.corpus_chrf),
        (ter, sacrebleu.corpus_ter),
    ],
)
def test_equal_to_sacrebleu(score, independent):
    streams = [list(stream) for stream in zip(*EQUAL, strict=True)]
    assert score(TEXTS, EQUAL) == independent(TEXTS, streams).score


@pytest.mark.parametrize("score", [bleu, chrf])
def test_uneven_references_are_as_repeated_ones(score):
    filled = [[*group, *group[:1] * (3 - len(group))] for group in SEVERAL]
    assert score(TEXTS, SEVERAL) == pytest.approx(score(TEXTS, filled))


def test_ter_of_uneven_references_is_that_of_each_text_together():
    """Edits to the nearest reference over the mean length of the references."""
    edits = total = 0.0
    for text, group in zip(TEXTS, SEVERAL, strict=True):
        length = np.mean([len(reference.split()) for reference in group])
        one = sacrebleu.corpus_ter([text], [[reference] for reference in group])
        edits += one.score / 100 * length
        total += length
    assert ter(TEXTS, SEVERAL) == pytest.approx(100 * edits / total)


def test_a_missing_reference_is_not_an_empty_one():
    """A short text beside one long reference pays for its shortness."""
    texts = ["the mill is old", "the mill by the river is old"]
    references = [["the mill by the river is very old indeed"], [texts[1], texts[1]]]
    alone = sacrebleu.corpus_bleu(texts, [[r[0] for r in references]])
    assert alone.bp < 1
    # The same f64 arithmetic up to the order of its terms.
    assert bleu(texts, references) == pytest.approx(alone.score, rel=1e-12)


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_best_reference_of_each_text(kind):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    best = [
        max(scorer.score(one, text)[kind].fmeasure for one in accepted)
        for text, accepted in zip(TEXTS, SEVERAL, strict=True)
    ]
    assert rouge(kind, TEXTS, SEVERAL) == pytest.approx(100 * np.mean(best))
    assert rouge(kind, ["The mills are old"], [["the mill are old"]]) == 100


def test_nist_of_one_reference_is_that_of_nltk():
    nltk = pytest.importorskip("nltk.translate.nist_score")
    split = sacrebleu.tokenizers.tokenizer_13a.Tokenizer13a()
    for shorter in (TEXTS, [text[: len(text) // 2] for text in TEXTS]):
        expected = nltk.corpus_nist(
            [[split(one).lower().split() for one in group] for group in SINGLE],
            [split(text).lower().split() for text in shorter],
        )
        assert nist(shorter, SINGLE) == pytest.approx(expected, rel=1e-12)


def test_nist_of_several_references_by_hand():
    """Two words of four match, each in another reference; lengths are 2 and 4 or 2.

    Counts over the references: a 2, b 1, c 1, d 1, e 1, of 6 words; "a b" 1 of 2.
    """
    weights = [math.log2(6 / 2), math.log2(6 / 1), math.log2(2 / 1)]
    brevity = math.exp(math.log(0.5) * (math.log(2 / 3) / math.log(1.5)) ** 2)
    expected = brevity * ((weights[0] + weights[1]) / 2 + weights[2] / 1)
    assert brevity == pytest.approx(0.5)
    assert nist(["A b"], [["a b", "a c d e"]]) == pytest.approx(expected)
    assert nist([""], [["a b"]]) == 0.0
    # Clipped by the reference with most of a word, not by their sum.
    assert nist(["a a"], [["a b", "a c"]]) < nist(["a a"], [["a a", "b c"]])


def test_texts_without_references_are_refused():
    with pytest.raises(InputError, match="at least one reference"):
        bleu(["a"], [[]])
    with pytest.raises(InputError, match="2 texts but references for 1"):
        bleu(["a", "b"], [["a"]])
    for score in (chrf, ter, nist, lambda *given: rouge("rougeL", *given)):
        with pytest.raises(InputError, match="no texts to score"):
            score([], [])


# --- coco-caption -----------------------------------------------------------


def test_coco_scores_are_those_of_its_own_classes():
    """On text whose Treebank tokens are plain: words in lower case, no final stop."""
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    texts = ["the old mill", "a river in aarhus is old", "it was by the river"]
    references = [["the mill is old", "an old mill"], ["a river is old"], [texts[2]]]
    given = {n: [text] for n, text in enumerate(texts)}
    accepted = dict(enumerate(references))
    found = text_scores(
        ("cider", "coco_rougeL", "meteor"),
        ["The old mill .", *texts[1:]],
        references,
    )
    assert found["cider"] == pytest.approx(Cider().compute_score(accepted, given)[0])
    expected = 100 * Rouge().compute_score(accepted, given)[0]
    assert found["coco_rougeL"] == pytest.approx(expected)
    assert (
        0
        < found["meteor"]
        < text_scores(("meteor",), texts[2:], [[texts[2]]])["meteor"]
        == pytest.approx(100)
    )


def test_what_coco_scores_lack_is_said(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="meteor needs Java"):
        metrics_of("table_to_text", ("meteor",))
    monkeypatch.setattr(captions.shutil, "which", lambda name: "/bin/java")
    monkeypatch.setitem(sys.modules, "pycocoevalcap.tokenizer.ptbtokenizer", None)
    with pytest.raises(InputError, match=r"pip install 'prefix-jax\[metrics\]'"):
        metrics_of("table_to_text", ("cider",))


# --- classes ----------------------------------------------------------------


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c", "never"]])
def test_classes_as_scikit_learn_counts_them(labels):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = random.Random(len(labels))
    true = rng.choices(labels[:3], k=40)
    predicted = rng.choices(labels[:2], k=40)  # one class or two are never predicted
    report = ClassReport.of(predicted, true, labels)
    expected = sklearn.precision_recall_fscore_support(
        true, predicted, labels=labels, zero_division=0
    )
    found = (report.precision, report.recall, report.f1, report.support)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    confusion = sklearn.confusion_matrix(true, predicted, labels=labels)
    np.testing.assert_array_equal(report.confusion, confusion)
    scores = class_scores(USUAL["classification"], report)
    assert scores["accuracy"] == sklearn.accuracy_score(true, predicted)
    assert scores["macro_f1"] == pytest.approx(
        sklearn.f1_score(
            true, predicted, labels=labels, average="macro", zero_division=0
        )
    )
    assert scores["macro_recall"] == pytest.approx(macro(expected[1].tolist()))
    with pytest.raises(InputError, match="1 predictions for 2 true labels"):
        ClassReport.of(["a"], ["a", "b"], labels)


# --- the table --------------------------------------------------------------


def test_every_task_has_its_scores_and_no_others():
    for task, usual in USUAL.items():
        assert metrics_of(task, ()) == usual
        assert metrics_of(task, usual[:1] * 2) == usual[:1]
        assert set(usual) <= set(NAMES)
    scores = text_scores(USUAL["translation"], TEXTS, SEVERAL)
    assert list(scores) == ["bleu", "chrf", "ter"]
    for task, name in (
        ("classification", "bleu"),
        ("translation", "accuracy"),
        ("language_modelling", "bleu"),
    ):
        with pytest.raises(InputError, match=f'"{name}", which data.task "{task}"'):
            metrics_of(task, (name,))
