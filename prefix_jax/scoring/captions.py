"""METEOR, CIDEr and ROUGE-L of coco-caption, which e2e-metrics takes them from.

pycocoevalcap computes them: METEOR and the tokens of all three (Penn Treebank's) come
from Java programs inside that package.
"""

import importlib
import shutil
from typing import Any

from prefix_jax.errors import InputError
from prefix_jax.scoring.text import References, Texts, check_texts

# Module and class of each score, and what makes it 0 to 100 (CIDEr has no such scale).
_SCORERS = {
    "meteor": ("pycocoevalcap.meteor.meteor", "Meteor", 100),
    "cider": ("pycocoevalcap.cider.cider", "Cider", 1),
    "coco_rougeL": ("pycocoevalcap.rouge.rouge", "Rouge", 100),
}


def check_available(name: str) -> None:
    """InputError that says what is missing, Java or the package."""
    if shutil.which("java") is None:
        raise InputError(
            f"the score {name} needs Java, and there is no `java` here; install a Java "
            "runtime (8 or later), or leave the score out of score.metrics"
        )
    _load("pycocoevalcap.tokenizer.ptbtokenizer", name)


def caption_score(name: str, texts: Texts, references: References) -> float:
    """`meteor` (0 to 100), `cider` (0 to 10) or `coco_rougeL` (0 to 100).

    Raises InputError as `check_available` and the other scores.
    """
    check_texts(texts, references)
    check_available(name)
    module, kind, scale = _SCORERS[name]
    tokenizer = _load("pycocoevalcap.tokenizer.ptbtokenizer", name).PTBTokenizer()

    def tokens(groups: References) -> dict[int, list[str]]:
        # Its Java program reads a line for each caption.
        captions = {
            number: [{"caption": " ".join(text.split())} for text in group]
            for number, group in enumerate(groups)
        }
        return tokenizer.tokenize(captions)

    scorer = getattr(_load(module, name), kind)()
    score, _ = scorer.compute_score(tokens(references), tokens([[t] for t in texts]))
    return scale * float(score)


def _load(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"the score {name} needs the package pycocoevalcap ({error}): "
            "pip install 'prefix-jax[metrics]', or leave the score out of score.metrics"
        ) from error
