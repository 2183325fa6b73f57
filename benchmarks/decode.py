"""How fast are texts written, and what do many prefixes in one batch cost?

Ours and PEFT's `generate` on the same backbone (random weights), prefix and E2E test
prompts, alternating in one process; medians and ratios. Each side runs at its own best
batch size of those given, prompts sorted by length, ids in and texts out.

    python benchmarks/decode.py --e2e FOLDER --tokenizer FOLDER --out FILE.json

Every text is written for exactly `--new-tokens` tokens (the end token is off): random
weights end nowhere sensible, and both sides then do the same work. How many of the
texts agree is reported; they differ where two tokens are as likely to f32 rounding.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
import peft
import torch
import transformers
from reports import (
    add_texts,
    make_parser,
    positive,
    random_gpt2,
    run,
    take_turns,
    write_report,
)

import prefix_jax as pj
from prefix_jax.config import DecodeConfig
from prefix_jax.data.tasks import load_examples
from prefix_jax.data.tokens import encode_prompts
from prefix_jax.decoding.generate import compiled_programs, generate_sequences
from prefix_jax.model.compose import bank

Texts = list[list[int]]
Write = Callable[[int], Texts]
"""Writes every prompt's text at a batch size."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is written, and with what."""

    backbone: pj.GPT2
    tokenizer: transformers.PreTrainedTokenizerFast
    prefixes: list[pj.KV]
    prompts: list[np.ndarray]
    new_tokens: int

    def ours(self, prefixes: int = 1, **settings) -> Write:
        """Row r uses prefix r mod `prefixes`."""
        decode = DecodeConfig(max_new_tokens=self.new_tokens, end_tokens=(), **settings)
        kv = bank(self.prefixes[:prefixes])
        ids = np.arange(len(self.prompts)) % prefixes

        def write(batch_size: int) -> Texts:
            found = generate_sequences(
                self.backbone,
                self.tokenizer,
                self.prompts,
                prefix=kv,
                prefix_ids=ids,
                decode=dataclasses.replace(decode, batch_size=batch_size),
            )
            return [list(sequences[0].tokens) for sequences in found]

        return write

    def theirs(self, model: peft.PeftModel, beams: int) -> Write:
        """PEFT's `generate` on left-padded batches of like lengths."""
        order = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i]))

        def write(batch_size: int) -> Texts:
            texts: Texts = [[] for _ in order]
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                rows = [self.prompts[i].tolist() for i in batch]
                width = max(map(len, rows))
                mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
                tokens = [[0] * (width - len(r)) + r for r in rows]
                with torch.inference_mode():
                    out = model.generate(
                        input_ids=torch.tensor(tokens, device=model.device),
                        attention_mask=torch.tensor(mask, device=model.device),
                        max_new_tokens=self.new_tokens,
                        num_beams=beams,
                        do_sample=False,
                        eos_token_id=None,
                        pad_token_id=0,
                    )
                written = out[:, width:].cpu()
                self.tokenizer.batch_decode(written, skip_special_tokens=True)
                for i, row in zip(batch, written.tolist(), strict=True):
                    texts[i] = row
            return texts

        return write


def make_work(options: argparse.Namespace) -> Work:
    """Random weights, random prefixes, E2E's test prompts."""
    tokenizer = pj.load_tokenizer(options.tokenizer)
    backbone = random_gpt2(options.shape, options.dtype)
    shape = pj.PrefixConfig(init="random", length=options.prefix_length)
    prefixes = [
        pj.init_prefix(backbone, shape, key=jax.random.key(i))()
        for i in range(max(options.prefixes))
    ]
    examples = load_examples(pj.DataConfig(source="e2e", path=str(options.e2e)), "test")
    sources = [example.source for example in examples[: options.prompts]]
    prompts = encode_prompts(sources, tokenizer)
    return Work(backbone, tokenizer, prefixes, prompts, options.new_tokens)


def load_peft(work: Work, dtype: str) -> peft.PeftModel:
    """The same backbone and prefix in PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        pj.save_backbone(f"{folder}/backbone", work.backbone)
        pj.save_prefix(f"{folder}/prefix", work.prefixes[0], backbone=work.backbone)
        model = transformers.GPT2LMHeadModel.from_pretrained(
            f"{folder}/backbone", dtype=getattr(torch, dtype)
        )
        adapted = peft.PeftModel.from_pretrained(model, f"{folder}/prefix").eval()
        return adapted.to("cuda" if torch.cuda.is_available() else "cpu")


def seconds(write: Write, batch_size: int) -> float:
    start = time.perf_counter()
    write(batch_size)
    return time.perf_counter() - start


def best_batch_size(write: Write, sizes: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The fastest batch size, and the seconds of each; the first call compiles."""
    took = {}
    for size in sizes:
        write(size)
        took[size] = seconds(write, size)
    return min(took, key=lambda size: took[size]), took


def compare(name: str, ours: Write, theirs: Write, work: Work, options) -> dict:
    """Both sides, alternating, each at its best batch size."""
    our_size, our_search = best_batch_size(ours, options.batch_sizes)
    their_size, their_search = best_batch_size(theirs, options.batch_sizes)
    agree = np.mean(
        [a == b for a, b in zip(ours(our_size), theirs(their_size), strict=True)]
    )
    sides = {"ours": partial(ours, our_size), "peft": partial(theirs, their_size)}
    took = take_turns(sides, options.rounds)
    rate = {
        side: len(work.prompts) / statistics.median(values)
        for side, values in took.items()
    }
    result = {
        "sequences_per_second": rate,
        "ratio": rate["ours"] / rate["peft"],
        "batch_size": {"ours": our_size, "peft": their_size},
        "seconds": took,
        "search": {"ours": our_search, "peft": their_search},
        "same_texts": float(agree),
    }
    print(
        f"{name}: ours {rate['ours']:.2f}/s (batch {our_size}), PEFT "
        f"{rate['peft']:.2f}/s (batch {their_size}), ratio {result['ratio']:.2f}; "
        f"{agree:.0%} of the texts agree",
        flush=True,
    )
    return result


def many_prefixes(work: Work, batch_size: int, options) -> dict[str, dict]:
    """Greedy decoding with ever more prefixes in a batch, alternating."""
    writes = {str(n): partial(work.ours(n), batch_size) for n in options.prefixes}
    for write in writes.values():
        write()
    took = take_turns(writes, options.rounds)
    first = statistics.median(took[str(options.prefixes[0])])
    results = {}
    for n, values in took.items():
        median = statistics.median(values)
        results[n] = {
            "sequences_per_second": len(work.prompts) / median,
            "relative_to_one": first / median,
            "seconds": values,
        }
        print(
            f"{n} prefixes in a batch of {batch_size}: "
            f"{len(work.prompts) / median:.2f}/s, {first / median:.2f} of one's",
            flush=True,
        )
    return results


def main() -> None:
    """The command line."""
    parser = make_parser(str(__doc__), rounds=3)
    add_texts(parser)
    parser.add_argument("--prompts", type=positive, default=64)
    parser.add_argument("--new-tokens", type=positive, default=48)
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[16, 32, 64])
    parser.add_argument("--prefixes", type=positive, nargs="+", default=[1, 8, 64])
    parser.add_argument("--beams", type=positive, default=5)
    parser.add_argument("--only", nargs="+", default=["greedy", "beam", "prefixes"])
    options = parser.parse_args()

    work = make_work(options)
    model = load_peft(work, options.dtype)
    results: dict[str, object] = {}
    if "greedy" in options.only:
        results["greedy"] = compare(
            "greedy", work.ours(), work.theirs(model, 1), work, options
        )
    if "beam" in options.only:
        ours = work.ours(method="beam", beams=options.beams)
        name = f"beam {options.beams}"
        theirs = work.theirs(model, options.beams)
        results["beam"] = compare(name, ours, theirs, work, options)
    if "prefixes" in options.only:
        results["prefixes"] = many_prefixes(work, max(options.batch_sizes), options)
    lengths = [len(prompt) for prompt in work.prompts]
    results |= {
        "prompt_tokens": {"mean": float(np.mean(lengths)), "max": max(lengths)},
        "peft": f"{model.config._attn_implementation} attention, inference_mode, "
        f"{torch.get_num_threads()} threads, dynamic cache, prompts sorted by length",
        "compiled_programs": compiled_programs(),
    }
    write_report(options, "decode", results, ("torch", "transformers", "peft"))


if __name__ == "__main__":
    run(main)
