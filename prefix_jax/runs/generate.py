"""Write with stored prefixes: what the command line's `generate` does."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Int32
from numpy import ndarray
from transformers import PreTrainedTokenizerFast

from prefix_jax.config import DecodeConfig
from prefix_jax.data.e2e import linearise
from prefix_jax.data.tokens import encode_prompts, encode_texts
from prefix_jax.data_config import Task, label_words
from prefix_jax.decoding.generate import each_sequences, stream
from prefix_jax.decoding.request import Generated
from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.model.weights import fingerprint
from prefix_jax.runs.prefixes import load_bank, named_folders
from prefix_jax.runs.prompts import Line, check_lines
from prefix_jax.score_config import ScoreConfig
from prefix_jax.scoring.labels import label_probabilities
from prefix_jax.storage.metadata import Metadata, read_metadata


class Kind(NamedTuple):
    """How a prompt becomes the text that a prefix was trained to go on from."""

    task: Task
    e2e: bool = False
    """E2E's meaning representations are linearised, as in training."""
    separator: str | None = None
    """What stood between source and target; None: the tokenizer's begin token."""
    labels: tuple[str, ...] = ()
    """`RAW=WORDS` of each class, in classification."""
    score: ScoreConfig = ScoreConfig()
    """How their likelihoods are compared."""


@dataclasses.dataclass(frozen=True)
class Writer:
    """A backbone and its prefixes, each with the kind of prompt it was trained for."""

    backbone: Backbone
    tokenizer: PreTrainedTokenizerFast
    kinds: Mapping[str, Kind]
    """What a prompt is for each prefix, by its name; empty for a bare backbone."""
    prefixes: KV | None
    """A bank in that order."""
    bare: Kind
    """What a prompt is without a prefix."""

    def write(
        self,
        lines: Sequence[Line],
        decode: DecodeConfig,
    ) -> Iterator[list[Generated]]:
        """`decode.sequences` texts for each line, without the space they begin with,
        line by line as they are written.

        A prompt is a source, put before the separator as in training (E2E's meaning
        representations are linearised); in language modelling it is the text to go on
        from. Raises InputError for an unknown prefix and for a prompt that is empty or
        too long, before any is written.
        """
        check_lines(lines, list(self.kinds))
        seeds = [line.seed for line in lines]
        found = each_sequences(
            self.backbone,
            self.tokenizer,
            self._prompts(lines),
            prefix=self.prefixes,
            prefix_ids=self._ids(lines) if self.prefixes is not None else None,
            seeds=seeds if any(seed is not None for seed in seeds) else None,
            decode=decode,
        )
        return (
            [dataclasses.replace(one, text=one.text.strip()) for one in sequences]
            for sequences in found
        )

    @property
    def classifies(self) -> bool:
        """Whether it finds labels instead of writing.

        Raises InputError where some of its prefixes do, and others do not.
        """
        kinds = self.kinds or {"the backbone": self.bare}
        tasks = {kind.task == "classification": name for name, kind in kinds.items()}
        if len(tasks) > 1:
            raise InputError(
                f'the prefix "{tasks[True]}" finds labels and "{tasks[False]}" writes; '
                "give them to commands of their own"
            )
        return True in tasks

    def classify(
        self, lines: Sequence[Line], batch_size: int = 32
    ) -> list[dict[str, float]]:
        """For each line the probabilities of its prefix's labels, by their words.

        Raises InputError as `write`.
        """
        check_lines(lines, list(self.kinds))
        prompts = self._prompts(lines)
        ids = None if self.prefixes is None else np.array(self._ids(lines))
        kinds = [self._kind(line) for line in lines]
        found: list[dict[str, float]] = [{} for _ in lines]
        for kind in dict.fromkeys(kinds):
            own = [number for number, other in enumerate(kinds) if other == kind]
            words = [*label_words(kind.labels).values()]
            probabilities = label_probabilities(
                self.backbone,
                self.tokenizer,
                [prompts[number] for number in own],
                words,
                prefix=self.prefixes,
                prefix_ids=None if ids is None else ids[own],
                score=kind.score,
                separator=kind.separator,
                batch_size=batch_size,
            )
            for number, row in zip(own, probabilities.tolist(), strict=True):
                found[number] = dict(zip(words, row, strict=True))
        return found

    def stream(self, line: Line, decode: DecodeConfig) -> Iterator[str]:
        """One text in pieces, as it is written."""
        check_lines([line], list(self.kinds))
        prefix = self.prefixes
        if prefix is not None and prefix.number > 1:
            raise InputError("streaming takes one --prefix; name only the one to use")
        if line.seed is not None:
            decode = dataclasses.replace(decode, seed=line.seed)
        pieces = stream(
            self.backbone,
            self.tokenizer,
            self._prompts([line])[0],
            prefix=prefix,
            decode=decode,
        )
        begun = False
        for piece in pieces:
            shown = piece if begun else piece.lstrip()
            begun = begun or bool(shown)
            yield shown

    def _ids(self, lines: Sequence[Line]) -> list[int]:
        names = list(self.kinds)
        return [names.index(line.prefix or names[0]) for line in lines]

    def _prompts(self, lines: Sequence[Line]) -> list[Int32[ndarray, "_"]]:
        return [self._prompt(line) for line in lines]

    def _kind(self, line: Line) -> Kind:
        if not self.kinds:
            return self.bare
        return self.kinds[line.prefix or next(iter(self.kinds))]

    def _prompt(self, line: Line) -> Int32[ndarray, "_"]:
        try:
            return self._encoded(line.prompt, self._kind(line))
        except InputError as error:
            raise InputError(f"{line}: {error}") from error

    def _encoded(self, prompt: str, kind: Kind) -> Int32[ndarray, "_"]:
        if kind.task == "language_modelling":
            return encode_texts([prompt], self.tokenizer)[0]
        if kind.e2e and "[" in prompt:  # what has been linearised has no bracket
            prompt = linearise(prompt)
        return encode_prompts([prompt], self.tokenizer, kind.separator)[0]


def open_writer(
    prefixes: Sequence[str],
    backbone: str | None,
    task: Task | None,
    labels: tuple[str, ...] = (),
    content_free: tuple[str, ...] | None = None,
) -> Writer:
    """A writer for stored prefixes, each `FOLDER` or `NAME=FOLDER`, or for none.

    A folder is a prefix's, or that of the run which trained it. Backbone, task,
    labels and the texts that calibrate them come from the prefixes' own records unless
    they are given. Raises InputError where there is no prefix, or prefixes of different
    backbones.
    """
    folders = named_folders(prefixes)
    records = {name: read_metadata(folder) for name, folder in folders.items()}
    naming = [name for name, record in records.items() if record.backbone_name]
    named = backbone is None and bool(naming)
    name = backbone if backbone is not None else "tiny"
    if named:
        name = str(records[naming[0]].backbone_name)
    dtypes = {record.backbone_dtype for record in records.values()} - {None}
    dtype: Any = dtypes.pop() if len(dtypes) == 1 else None  # load_backbone checks it
    # Decoding unrolls the layers of any other, at each call.
    try:
        model = load_backbone(name, dtype=dtype or "float32", unroll=True)
    except InputError as error:
        if not named:
            raise
        raise InputError(
            f"{folders[naming[0]]} names the backbone {name!r} (to take another: "
            f"--backbone NAME_OR_FOLDER): {error}"
        ) from error
    kinds = {
        name: _recorded_kind(folders[name], record, task, labels, content_free)
        for name, record in records.items()
    }
    bare = Kind(
        task or "language_modelling",
        labels=labels,
        score=ScoreConfig(content_free=content_free or ()),
    )
    if not folders:
        _check_labels(bare, "the backbone")
    return Writer(
        model,
        load_tokenizer(name),
        kinds,
        load_bank(folders, model, fingerprint(model)) if folders else None,
        bare,
    )


def _recorded_kind(
    folder: Path,
    record: Metadata,
    task: Task | None,
    labels: tuple[str, ...],
    content_free: tuple[str, ...] | None,
) -> Kind:
    """What was asked for, else what the prefix says; PEFT's say nothing: text."""
    asked = task or record.task or "language_modelling"
    if task is None and record.backbone_fingerprint is None:
        print(
            f"{folder} does not say what its prompts are: they are taken as text to "
            "continue (--task says otherwise)",
            file=sys.stderr,
        )
    known: dict[str, Task] = {name: name for name in get_args(Task)}
    if asked not in known:
        raise InputError(
            f"the prefix in {folder} was trained for the task {asked!r}; this version "
            f"of prefix_jax knows {', '.join(known)}: say which is meant with --task"
        )
    separator = record.recorded("data.separator")
    kind = Kind(known[asked], bool(record.e2e), separator)
    if kind.task == "classification":
        own = record.recorded("data.labels", ())
        free = record.recorded("score.content_free", ())
        kind = kind._replace(
            labels=labels or own,
            score=ScoreConfig(
                label_likelihood=record.recorded("score.label_likelihood", "sum"),
                content_free=free if content_free is None else content_free,
            ),
        )
    else:
        score = ScoreConfig(content_free=content_free or ())
        kind = kind._replace(labels=labels, score=score)
    _check_labels(kind, f"the prefix in {folder}")
    return kind


def _check_labels(kind: Kind, who: str) -> None:
    if (kind.task == "classification") != bool(kind.labels):
        raise InputError(
            f'{who} is used for the task "{kind.task}" with the labels {kind.labels}; '
            '"classification", and it alone, needs them, such as --labels 0=negative '
            "1=positive"
        )
    label_words(kind.labels)
    if kind.score.content_free and not kind.labels:
        raise InputError(
            f'{who} is used for the task "{kind.task}", which has no classes for '
            "--content-free texts to calibrate; leave them out"
        )
