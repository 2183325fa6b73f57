"""How well does a backbone predict text it has not seen? (`tiny`'s model card)

python benchmarks/perplexity.py --text corpus/wikitext2_test.txt
"""

import argparse
import json
import math
import sys
from pathlib import Path

import jax
import numpy as np

from prefix_jax.data.files import read_documents
from prefix_jax.errors import InputError
from prefix_jax.model.loading import load_backbone, load_tokenizer


def perplexity_per_byte(text: Path, name: str, rows: int = 16) -> dict[str, float]:
    """Scores of a text file in windows of the backbone's positions.

    Every token but the first of each window is predicted from those before it in the
    window, so most have less than the full context. Bytes are those of the tokens
    predicted; the end of a document counts as a token of no bytes.
    """
    backbone, tokenizer = load_backbone(name), load_tokenizer(name)
    length = backbone.config.n_positions
    ids: list[int] = []
    sizes: list[int] = []
    for document in read_documents(text):
        tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(tokens)
        # A byte-level token has one character for each byte.
        ids += [*tokens, tokenizer.eos_token_id]
        sizes += [*(len(piece) for piece in pieces), 0]
    whole = len(ids) // length
    if not whole:
        raise InputError(
            f"{text}: {len(ids)} tokens; a window of {name!r} needs {length}"
        )
    windows = np.array(ids[: whole * length], np.int32).reshape(whole, length)
    size = np.array(sizes[: whole * length]).reshape(whole, length)

    @jax.jit
    def nll(backbone, tokens):
        scores = jax.nn.log_softmax(backbone(tokens[:, :-1]))
        return -jax.numpy.sum(jax.numpy.take_along_axis(scores, tokens[:, 1:, None], 2))

    total = sum(
        float(nll(backbone, windows[start : start + rows]))
        for start in range(0, whole, rows)
    )
    tokens, bytes_ = whole * (length - 1), int(size[:, 1:].sum())
    return {
        "tokens": tokens,
        "bytes": bytes_,
        "loss_per_token": total / tokens,
        "bits_per_byte": total / bytes_ / math.log(2),
        "perplexity_per_byte": math.exp(total / bytes_),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Perplexity per byte of a backbone on a text file, as JSON."
    )
    parser.add_argument("--text", type=Path, required=True, help="the text to score")
    parser.add_argument("--backbone", default="tiny", help="name or folder")
    options = parser.parse_args()
    try:
        scores = perplexity_per_byte(options.text, options.backbone)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
