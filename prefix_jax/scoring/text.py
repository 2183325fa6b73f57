"""Scores of written texts against their references.

Every score takes the texts and, for each, all accepted references, whose numbers may
differ; it raises InputError for lists of different lengths, no texts, or a text without
a reference.

What each agrees with, and how closely:

- bleu, chrf, ter: sacrebleu, exactly, as it computes them. (e2e-metrics and the scripts
  of WebNLG and DART lower the case first, and tokenise otherwise.)
- rouge1, rouge2, rougeL: rouge-score with stemming, exactly. (The ROUGE-L of
  e2e-metrics and of the paper's E2E table is coco-caption's: `coco_rougeL`.)
- nist: nltk's corpus_nist on the same tokens with one reference, to 1e-12; for more,
  see `nist`.
- meteor, cider, coco_rougeL: coco-caption, exactly, as pycocoevalcap computes them.
"""

from collections.abc import Sequence
from typing import cast

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.base import Metric

from prefix_jax.errors import InputError

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def check_texts(texts: Texts, references: References) -> None:
    """InputError unless every text has its references."""
    if len(texts) != len(references):
        raise InputError(f"{len(texts)} texts but references for {len(references)}")
    if not texts:
        raise InputError("no texts to score")
    if any(not accepted for accepted in references):
        raise InputError("every text needs at least one reference")


def bleu(texts: Texts, references: References) -> float:
    """Corpus BLEU, 0 to 100: sacrebleu's defaults (13a tokens, case kept)."""
    return _sacrebleu(sacrebleu.BLEU(), texts, references)


def chrf(texts: Texts, references: References) -> float:
    """Corpus chrF2, 0 to 100: sacrebleu's defaults."""
    return _sacrebleu(sacrebleu.CHRF(), texts, references)


def ter(texts: Texts, references: References) -> float:
    """Translation edit rate, in per cent of the references' words; less is better."""
    return _sacrebleu(sacrebleu.TER(), texts, references)


def _sacrebleu(metric: Metric, texts: Texts, references: References) -> float:
    check_texts(texts, references)
    most = max(len(accepted) for accepted in references)
    # sacrebleu wants one stream per reference number, with None where there is none
    # (an empty one would count as a reference of length 0).
    streams = [
        [accepted[i] if i < len(accepted) else None for accepted in references]
        for i in range(most)
    ]
    return metric.corpus_score(texts, cast(list[list[str]], streams)).score


def rouge(kind: str, texts: Texts, references: References) -> float:
    """ROUGE F-measure, 0 to 100, `kind` being rouge1, rouge2 or rougeL.

    rouge-score with stemming, as is usual for XSum: for each text its best reference,
    and the mean over texts.
    """
    check_texts(texts, references)
    scorer = RougeScorer([kind], use_stemmer=True)
    best = [
        scorer.score_multi(accepted, text)[kind].fmeasure
        for text, accepted in zip(texts, references, strict=True)
    ]
    return 100 * sum(best) / len(best)
