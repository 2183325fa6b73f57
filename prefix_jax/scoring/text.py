"""Scores of written texts against their references."""

from collections.abc import Sequence
from typing import cast

import sacrebleu

from prefix_jax.errors import InputError


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100, sacrebleu's defaults (13a tokens), several references.

    `references[i]` are all accepted texts for `texts[i]`; their numbers may differ.
    Raises InputError for lists of different lengths or a text without a reference.
    """
    if len(texts) != len(references):
        raise InputError(f"{len(texts)} texts but references for {len(references)}")
    if not texts:
        raise InputError("no texts to score")
    if any(not accepted for accepted in references):
        raise InputError("every text needs at least one reference")
    most = max(len(accepted) for accepted in references)
    # sacrebleu wants one stream per reference number, with None where there is none
    # (an empty one would count as a reference of length 0).
    streams = [
        [accepted[i] if i < len(accepted) else None for accepted in references]
        for i in range(most)
    ]
    return sacrebleu.corpus_bleu(texts, cast(list[list[str]], streams)).score
