"""How far are our logits from those of transformers' PyTorch models?

    python benchmarks/logits.py [--gguf FILE --text FILE] --out FILE --markdown FILE

Variants of every family with random weights in f32, without a prefix and with one, on
whole rows and on rows padded on either side: the largest difference of any logit. (The
tests have more of them, and the rounding that PyTorch itself does.) With --gguf also a
model of llama.cpp's format, each side reading the file by itself, on the beginning of a
text.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from reports import write_report

import prefix_jax as pj

LAYERS, WIDTH, HEADS, GROUPS, VOCABULARY = 3, 48, 6, 2, 97
ROWS, TOKENS, PREFIX = 3, 11, 4
LONG = 512
"""Tokens of real text."""

GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
VARIANTS: dict[str, tuple[str, dict]] = {
    "GPT-2": ("GPT2", GPT2),
    "GPT-2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False}),
    "GPT-2, attention scaled by layer": (
        "GPT2",
        GPT2 | {"scale_attn_by_inverse_layer_idx": True},
    ),
    "Llama 2": ("Llama", LLAMA | {"num_key_value_heads": HEADS}),
    "Llama 3 (grouped queries, its rope)": (
        "Llama",
        LLAMA | {"rope_parameters": LLAMA3},
    ),
    "Llama, linear rope": ("Llama", LLAMA | {"rope_parameters": LINEAR}),
    "Llama, biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "SmolLM2 (grouped queries, tied)": (
        "Llama",
        LLAMA | {"tie_word_embeddings": True},
    ),
    "Mistral": ("Mistral", LLAMA | {"sliding_window": None}),
    "Mistral, sliding windows": (
        "Mistral",
        LLAMA | {"sliding_window": 6},
    ),
    "Qwen2 and 2.5": ("Qwen2", LLAMA),
    "Qwen2, YaRN": ("Qwen2", LLAMA | {"rope_parameters": YARN}),
    "Qwen2, sliding windows from layer 1": (
        "Qwen2",
        LLAMA
        | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", LLAMA | {"head_dim": 16}),
    "Qwen3, tied": ("Qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
}


def random_model(family: str, fields: dict) -> transformers.PreTrainedModel:
    """A PyTorch model in which every parameter matters (no bias 0, no scale 1)."""
    config = getattr(transformers, f"{family}Config")(
        **fields, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0
    )
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, value in model.named_parameters():
            noise = 0.3 * torch.randn(value.shape, generator=generator)
            scales = value.ndim == 1 and "weight" in path
            value.copy_(1 + noise if scales else noise)
    return model


def torch_logits(model, tokens, kv, mask) -> np.ndarray:
    """With `kv` [L 1 P H K] as past key values, of the model's type."""
    given: dict[str, object] = {"input_ids": torch.from_numpy(tokens)}
    length = 0
    if kv is not None:
        length = kv.length
        cache = transformers.DynamicCache()
        for layer in range(len(kv.keys)):
            parts = (np.array(x[layer]) for x in (kv.keys, kv.values))
            key, value = (
                torch.from_numpy(x)
                .to(model.dtype)
                .transpose(1, 2)
                .expand(len(tokens), -1, -1, -1)
                for x in parts
            )
            cache.update(key, value, layer)
        given["past_key_values"] = cache
    seen = np.concatenate([np.ones((len(tokens), length), bool), mask], 1)
    given["attention_mask"] = torch.from_numpy(seen.astype(np.int64))
    given["position_ids"] = torch.from_numpy(positions_of(mask) + length)
    with torch.no_grad():
        return model(**given).logits.double().numpy()


def positions_of(mask: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def masks(windows: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Which tokens are real, by what is done to the rows."""
    yield "whole", np.ones((ROWS, TOKENS), bool)
    for side, padding in (("right", slice(-4, None)), ("left", slice(0, 4))):
        # transformers counts padding between prefix and text as distance, so that the
        # window of a row padded on the left is shorter than of the same text alone.
        if not (windows and side == "left"):
            mask = np.ones((ROWS, TOKENS), bool)
            mask[1:, padding] = False
            yield f"padded {side}", mask


def compare(model, backbone: pj.Backbone, tokens, kv, mask) -> dict[str, float]:
    """Differences of logits of real tokens, and the largest of these."""
    theirs = torch_logits(model, tokens, kv, mask)[mask]
    shift = 0 if kv is None else kv.length
    logits = jax.jit(backbone)(tokens, kv, mask, positions_of(mask) + shift)
    mine = np.asarray(logits, np.float64)[mask]
    return {
        "largest_logit": float(np.abs(theirs).max()),
        "difference": float(np.abs(mine - theirs).max()),
    }


def random_prefix(backbone: pj.Backbone, length: int) -> pj.KV:
    config = backbone.config
    shape = config.n_layer, 1, length, config.kv_heads, config.head_width
    draw = np.random.default_rng(1).normal
    keys, values = (jnp.asarray(draw(size=shape), jnp.float32) for _ in range(2))
    return pj.KV(keys, values)


def of_random_weights() -> Iterator[dict]:
    """A line for each variant, prefix and padding."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, TOKENS))
    for name, (family, fields) in VARIANTS.items():
        model = random_model(family, fields)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            backbone = pj.load_backbone(folder)
        for length in (0, PREFIX):
            kv = random_prefix(backbone, length) if length else None
            for rows, mask in masks(windows="windows" in name):
                found = compare(model, backbone, tokens, kv, mask)
                yield {"model": name, "prefix": length, "rows": rows, **found}


def of_gguf(path: Path, text: Path) -> Iterator[dict]:
    """The file, read by transformers and by us, on real text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    backbone, tokenizer = pj.load_backbone(path), pj.load_tokenizer(path)
    ids = tokenizer(text.read_text(encoding="utf-8")[:9_999])
    tokens = np.array(ids["input_ids"][:LONG])[None]
    words = pj.PrefixConfig(init="words", words="A description:", length=PREFIX)
    prefix = pj.init_prefix(backbone, words, key=jax.random.key(0), tokenizer=tokenizer)
    for kv in (None, prefix()):
        found = compare(model, backbone, tokens, kv, np.ones(tokens.shape, bool))
        length = 0 if kv is None else kv.length
        yield {"model": path.name, "prefix": length, "rows": "whole", **found}


def table(lines: list[dict]) -> str:
    """As Markdown: a row for each model, with and without a prefix."""
    rows: dict[tuple[str, int], list[dict]] = {}
    for line in lines:
        rows.setdefault((line["model"], line["prefix"]), []).append(line)
    text = (
        "| model | prefix | largest logit | ours - PyTorch: whole rows "
        "| padded right | padded left |\n"
        "|---|---:|---:|---:|---:|---:|\n"
    )
    for (model, length), found in rows.items():
        apart = {line["rows"]: f"{line['difference']:.1e}" for line in found}
        cells = [
            model,
            str(length) if length else "none",
            f"{max(line['largest_logit'] for line in found):.1f}",
            *(apart.get(name, "") for name in ("whole", "padded right", "padded left")),
        ]
        text += f"| {' | '.join(cells)} |\n"
    return text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, help="a file of llama.cpp's, too")
    parser.add_argument("--text", type=Path, help="for --gguf: a text file")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    options = parser.parse_args()
    if options.gguf and options.text is None:
        parser.error("--gguf needs a --text to read")
    lines = list(of_random_weights())
    if options.gguf:
        lines += of_gguf(options.gguf, options.text)
    print(table(lines))
    if options.markdown:
        options.markdown.write_text(table(lines), encoding="utf-8")
    write_report(options, "logits", {"lines": lines}, ("torch", "transformers"))


if __name__ == "__main__":
    main()
