"""Held-out perplexity per byte of a backbone, for the model card.

python -m prefix_jax.model.tiny.perplexity --text corpus/wikitext2_test.txt
"""

import argparse
import json
import math
from pathlib import Path

import jax
import numpy as np

from prefix_jax.model.loading import load_backbone, load_tokenizer

END = "<|endoftext|>"


def perplexity_per_byte(text: str, name: str, rows: int = 16) -> dict[str, float]:
    """Scores of the text in windows of the backbone's positions.

    Every token but the first of each window is predicted from those before it in the
    window, so most have less than the full context. Bytes are those of the tokens
    predicted; `<|endoftext|>` lines count as tokens of no bytes.
    """
    backbone, tokenizer = load_backbone(name), load_tokenizer(name)
    length = backbone.config.n_positions
    ids: list[int] = []
    sizes: list[int] = []
    for document in text.split(f"{END}\n"):
        if not document.strip():
            continue
        tokens = tokenizer(document.strip("\n"), add_special_tokens=False)["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(tokens)
        # A byte-level token has one character for each byte.
        ids += [*tokens, tokenizer.eos_token_id]
        sizes += [*(len(piece) for piece in pieces), 0]
    whole = len(ids) // length
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
    text = options.text.read_text(encoding="utf-8")
    print(json.dumps(perplexity_per_byte(text, options.backbone), indent=2))


if __name__ == "__main__":
    main()
