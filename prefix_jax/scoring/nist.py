"""NIST, the score that rewards rare n-grams."""

import math
from collections import Counter

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from prefix_jax.scoring.text import References, Texts, check_texts

LONGEST = 5
"""Words of the longest n-grams."""

_Ngram = tuple[str, ...]


def nist(texts: Texts, references: References) -> float:
    """Corpus NIST of n-grams up to 5 words (Doddington 2002), case ignored, 13a tokens.

    An n-gram w1..wn weighs log2(count(w1..wn-1) / count(w1..wn)), counted over all
    references; matches are clipped by the reference that has most of them, and the
    length that brevity is measured by is the mean of a text's references. These are the
    rules of mteval-v13a.pl, and so of e2e-metrics (which lets a text shorter than n
    words count as a negative number of n-grams; here it has none). With one reference
    it is nltk's `corpus_nist` on these tokens; with several nltk counts the matches of
    the single best reference, and takes its length.
    """
    check_texts(texts, references)
    split = Tokenizer13a()

    def words(text: str) -> list[str]:
        return split(text).lower().split()

    written = [words(text) for text in texts]
    accepted = [[words(text) for text in group] for group in references]
    counts: Counter[_Ngram] = Counter()
    for group in accepted:
        for reference in group:
            for n in range(LONGEST + 1):
                counts.update(_ngrams(reference, n))

    def weight(ngram: _Ngram) -> float:
        return math.log2(counts[ngram[:-1]] / counts[ngram])

    score = 0.0
    for n in range(1, LONGEST + 1):
        gained, total = 0.0, 0
        for text, group in zip(written, accepted, strict=True):
            own = _ngrams(text, n)
            most: Counter[_Ngram] = Counter()
            for reference in group:
                most |= _ngrams(reference, n)
            matched = own & most
            gained += sum(count * weight(one) for one, count in matched.items())
            total += own.total()
        score += gained / max(total, 1)
    length = sum(map(len, written))
    expected = sum(sum(map(len, group)) / len(group) for group in accepted)
    return score * _brevity(length / expected if expected else 1.0)


def _ngrams(words: list[str], n: int) -> Counter[_Ngram]:
    """The n-grams; for n = 0 the empty one, once for each word."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - max(n, 1) + 1))


def _brevity(ratio: float) -> float:
    """0.5 where the texts are two thirds as long as the references; at most 1."""
    if ratio == 0:
        return 0.0
    beta = math.log(0.5) / math.log(1.5) ** 2
    return math.exp(beta * math.log(min(ratio, 1.0)) ** 2)
