"""What a stored prefix is, as numbers: the command line's `inspect`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefix_jax.data.tokens import Row, encode_texts
from prefix_jax.errors import InputError
from prefix_jax.learning.split import count
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_tokenizer
from prefix_jax.runs.attention import Read, find_backbone, read_with
from prefix_jax.runs.prefixes import prefix_folder
from prefix_jax.storage.artifact import read_stored, stored_kv
from prefix_jax.storage.metadata import (
    OWN_CONFIG,
    Metadata,
    read_metadata,
    read_shape,
)

TEXT = "The old town lies on the river, and its market is known for fish and cheese."


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a prefix; None where the backbone would be needed."""

    length: int
    """Positions."""
    key_norm: float
    """Mean Euclidean length of the prefix's keys, over positions and heads; 0 where
    there is no position."""
    value_norm: float
    key_ratio: float | None
    """`key_norm` over that of the text's own keys; so the next."""
    value_ratio: float | None
    mass: tuple[float, ...] | None
    """By head, the share of attention that the text's tokens pay to the prefix; None
    for a gated one too, which takes no share from the text."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What there is to know about a stored prefix."""

    folder: Path
    metadata: Metadata
    written_by: str
    length: int
    numbers: int
    stored_bytes: int
    share: float | None
    """`numbers` over the backbone's parameters."""
    backbone_found: str
    """`the same`, or what stands in its way."""
    texts: tuple[str, ...]
    layers: tuple[Layer, ...]
    """Empty for embeddings without their backbone."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def inspect_prefix(
    folder: Path | str, texts: Sequence[str] = (), backbone: str | None = None
) -> Inspection:
    """All that is known of the prefix in `folder`, or of the best one of a run.

    `texts` are read with it, as they are, to see how much of their attention it
    receives. `backbone`: name or folder; None: as the prefix says. Without a backbone
    that can be loaded, and is the prefix's own, the files are described.
    Raises InputError for damaged files and for texts that are empty or too long.
    """
    folder = prefix_folder(folder)
    metadata = read_metadata(folder)
    shape = read_shape(folder, metadata, backbone)
    tensor = read_stored(folder, metadata, shape)
    texts = tuple(texts) or (TEXT,)

    model, kv, problem = find_backbone(folder, metadata, backbone)
    own = None
    if kv is None and metadata.kind == "prefix":
        kv = stored_kv(tensor, metadata, shape, None)
    if model is not None and kv is not None:
        own = _read(model, kv, texts, backbone or metadata.backbone_name or "")
    numbers = tensor.size
    if metadata.layer_lengths is not None:  # the rest are zeros that nothing sees
        numbers = 2 * shape.kv_width * sum(metadata.layer_lengths)
    return Inspection(
        folder=folder,
        metadata=metadata,
        written_by="prefix_jax" if (folder / OWN_CONFIG).is_file() else "PEFT",
        length=len(tensor),
        numbers=numbers,
        stored_bytes=(folder / metadata.tensors).stat().st_size,
        share=None if model is None else numbers / count(model),
        backbone_found=problem,
        texts=texts if own is not None else (),
        layers=() if kv is None else tuple(_layers(kv, own)),
    )


def _read(model: Backbone, kv: KV, texts: Sequence[str], name: str) -> Read:
    if empty := [text for text in texts if not text.strip()]:
        raise InputError(f"--text {empty[0]!r} is empty; give some words")
    encoded = encode_texts(texts, load_tokenizer(name))
    width = max(len(ids) for ids in encoded)
    room = model.config.n_positions - kv.position_offset
    if width > room:
        raise InputError(
            f"prefix {kv.position_offset} + --text of {width} tokens = "
            f"{kv.position_offset + width} exceed the backbone's "
            f"{model.config.n_positions} positions; give at most {room} tokens"
        )
    # To an infix the text is a target: what is read with it comes after it.
    return read_with(model, kv, [Row(ids, np.ones(len(ids), bool)) for ids in encoded])


def _layers(kv: KV, own: Read | None):
    real = kv.limit(kv.length)
    assert real.lengths is not None and real.mask is not None
    lengths = np.asarray(real.lengths[:, 0])
    mask = np.asarray(real.mask[:, 0, 0])
    norms = []
    for x in (kv.keys, kv.values):
        by_position = np.linalg.norm(x[:, 0], axis=-1).mean(-1)  # L P
        norms.append((by_position * mask).sum(-1) / np.maximum(lengths, 1))
    for layer, (length, key, value) in enumerate(zip(lengths, *norms, strict=True)):
        length, key, value = int(length), float(key), float(value)
        if own is None:
            yield Layer(length, key, value, None, None, None)
            continue
        yield Layer(
            length,
            key,
            value,
            key / float(own.key_norm[layer]),
            value / float(own.value_norm[layer]),
            None if own.mass is None else tuple(own.mass[layer].tolist()),
        )
