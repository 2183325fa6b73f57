"""Texts written during training, so that people see what was learned."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import TypeVar

from prefix_jax.decoding.generate import generate
from prefix_jax.distributed import is_first
from prefix_jax.errors import InputError, shortened
from prefix_jax.json_text import parse
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.runs.prepare import Rows, Setup
from prefix_jax.runs.validate import write_texts
from prefix_jax.storage.files import write_text

T = TypeVar("T")
PROMPT_TOKENS = 24
"""Tokens of a held-out row that language modelling continues from."""
SHOWN = 300
"""Characters of a source on the terminal; the file has all."""


class SampleLog:
    """Writes a few held-out sources' texts to `samples.jsonl` at each validation."""

    def __init__(self, setup: Setup, held_out: Rows, workdir: Path):
        number = setup.config.train.samples
        self._setup = setup
        self._examples = held_out.examples[:number]
        self._rows = [] if held_out.examples else held_out.rows[:number]
        self._path = workdir / "samples.jsonl"

    def write(self, step: int, backbone: Backbone, prefix: KV | None) -> Iterator[str]:
        """Decode, append to the file, and give one line per sample to show.

        All processes of a run decode, and the first one writes.
        """
        path = self._path if is_first() else os.devnull
        with open(path, "a", encoding="utf-8") as file:
            for source, text, references in self._decode(backbone, prefix):
                record = {
                    "step": step,
                    "source": source,
                    "text": text,
                    "references": list(references),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                shown = shortened(_line(source), SHOWN)
                yield f"    {shown}\n      -> {_line(text)}"
            # A checkpoint that comes after it goes on from these lines.
            if path is self._path:
                file.flush()
                os.fsync(file.fileno())

    def truncate_after(self, step: int) -> None:
        """Forget samples of later steps, which a resumed run will write again."""
        if not is_first() or not self._path.exists():
            return
        # A killed process may have left a last line without an end, or half a letter.
        text = self._path.read_text(encoding="utf-8", errors="replace")
        lines = enumerate(text.split("\n")[:-1], 1)
        kept = [line + "\n" for n, line in lines if self._step(n, line) <= step]
        write_text(self._path, "".join(kept))

    def _step(self, number: int, line: str) -> int:
        try:
            return parse(line)["step"]
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f'{self._path}, line {number}: expected {{"step": ..., ...}}, found '
                f"{line[:80]!r}; mend or remove the line"
            ) from None

    def _decode(self, backbone, prefix):
        setup, decode = self._setup, self._setup.config.decode
        if self._examples:
            written = write_texts(setup, backbone, prefix, self._examples, decode)
            for example, text in zip(written.examples, written.texts, strict=True):
                yield example.source, text, example.references
        if self._rows:
            prompts = [row.tokens[:PROMPT_TOKENS].tolist() for row in self._rows]
            texts = generate(
                backbone,
                setup.tokenizer,
                prompts,
                prefix=prefix,
                decode=decode,
                mesh=setup.mesh,
            )
            sources = setup.tokenizer.batch_decode(prompts)
            yield from zip(sources, texts, repeat(()), strict=False)


def spread(items: Sequence[T], number: int) -> Sequence[T]:
    """At most `number` of them, spread evenly: neighbours are often alike."""
    stride = max(len(items) // number, 1)
    return items[: stride * number : stride]


def _line(text: str) -> str:
    return " ".join(text.split())
