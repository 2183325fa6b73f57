"""How well does a backbone predict text it has not seen?

    python benchmarks/perplexity.py --text corpus/wikitext2_test.txt
    python benchmarks/perplexity.py --text wikitext2.test --whole --length 1024 \\
        --backbone FILE.gguf --torch --out FILE.json

With --torch transformers reads the same weights and scores the same windows.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from reports import write_report
from tokenizers import decoders

from prefix_jax.data.files import read_documents
from prefix_jax.errors import InputError
from prefix_jax.model.loading import load_backbone, load_tokenizer


def perplexity_per_byte(
    text: Path,
    name: str,
    *,
    length: int | None = None,
    whole: bool = False,
    with_torch: bool = False,
    rows: int = 8,
) -> dict[str, float]:
    """Scores of a text file in windows of `length` tokens (None: all positions).

    Every token but the first of each window is predicted from those before it in the
    window, so most have less than the full context. Bytes are those of the tokens
    predicted, where a tokenizer is byte-level, so that they can be told; the end of a
    document counts as a token of no bytes. `whole`: the file is one document.
    """
    backbone, tokenizer = load_backbone(name), load_tokenizer(name)
    length = length or backbone.config.n_positions
    documents = [text.read_text("utf-8")] if whole else read_documents(text)
    ids: list[int] = []
    sizes: list[int] = []
    for document in documents:
        tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(tokens)
        # A byte-level token has one character for each byte.
        ids += [*tokens, tokenizer.eos_token_id]
        sizes += [*(len(piece) for piece in pieces), 0]
    number = len(ids) // length
    if not number:
        raise InputError(
            f"{text}: {len(ids)} tokens; a window of {name!r} needs {length}"
        )
    windows = np.array(ids[: number * length], np.int32).reshape(number, length)
    size = np.array(sizes[: number * length]).reshape(number, length)

    @jax.jit
    def nll(backbone, tokens):
        scores = jax.nn.log_softmax(backbone(tokens[:, :-1]))
        return -jax.numpy.sum(jax.numpy.take_along_axis(scores, tokens[:, 1:, None], 2))

    batches = [windows[start : start + rows] for start in range(0, number, rows)]
    total = sum(float(nll(backbone, batch)) for batch in batches)
    tokens = number * (length - 1)
    found = {
        "tokens": tokens,
        "loss_per_token": total / tokens,
        "perplexity_per_token": math.exp(total / tokens),
    }
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        bytes_ = int(size[:, 1:].sum())
        found["bytes"] = bytes_
        found["bits_per_byte"] = total / bytes_ / math.log(2)
        found["perplexity_per_byte"] = math.exp(total / bytes_)
    if with_torch:
        loss = torch_nll(Path(name), batches) / tokens
        found["torch_loss_per_token"] = loss
        found["torch_perplexity_per_token"] = math.exp(loss)
    return found


def torch_nll(path: Path, batches: Sequence[np.ndarray]) -> float:
    """The summed loss of transformers' model, from a folder or a GGUF file."""
    import torch
    import transformers

    read = transformers.AutoModelForCausalLM.from_pretrained
    if path.is_file():
        model = read(path.parent, gguf_file=path.name, dtype=torch.float32)
    else:
        model = read(path, dtype=torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(model, device).eval()
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            ids = torch.from_numpy(batch.astype(np.int64)).to(device)
            logits = model(ids).logits[:, :-1].flatten(0, 1)
            labels = ids[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            total += loss.item()
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="the text to score")
    parser.add_argument("--backbone", default="tiny", help="name or folder")
    parser.add_argument("--whole", action="store_true", help="it is one document")
    parser.add_argument(
        "--length", type=int, help="of a window; default: all positions"
    )
    parser.add_argument("--torch", action="store_true", help="transformers' score too")
    parser.add_argument("--out", type=Path, help="where the JSON goes, with settings")
    options = parser.parse_args()
    try:
        scores = perplexity_per_byte(
            options.text,
            options.backbone,
            length=options.length,
            whole=options.whole,
            with_torch=options.torch,
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(scores, indent=2))
    for name in ("text", "backbone"):
        setattr(options, name, Path(getattr(options, name)).name)
    packages = ("torch", "transformers") if options.torch else ()
    write_report(options, "perplexity", scores, packages)


if __name__ == "__main__":
    main()
