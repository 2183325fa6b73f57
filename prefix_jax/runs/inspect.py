"""What a stored prefix is, as numbers: the command line's `inspect`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prefix_jax.data.tokens import encode_texts
from prefix_jax.errors import InputError
from prefix_jax.learning.split import count
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.model.weights import fingerprint
from prefix_jax.runs.prefixes import prefix_folder
from prefix_jax.storage.artifact import (
    OWN_CONFIG,
    OWN_TENSORS,
    PEFT_TENSORS,
    Metadata,
    load_prefix,
    read_metadata,
    read_shape,
)
from prefix_jax.storage.peft_layout import check_tensor, from_tensor, read_tensor

TEXT = "The old town lies on the river, and its market is known for fish and cheese."


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a prefix; None where the backbone would be needed."""

    key_norm: float
    """Mean Euclidean length of the prefix's keys, over positions and heads."""
    value_norm: float
    key_ratio: float | None
    """`key_norm` over that of the text's own keys; so the next."""
    value_ratio: float | None
    mass: tuple[float, ...] | None
    """By head, the share of attention that the text's tokens pay to the prefix."""


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
    shifted = metadata.position_mode == "shifted"
    path = folder / (PEFT_TENSORS if shifted else OWN_TENSORS)
    tensor = read_tensor(path)
    shape = read_shape(folder, metadata)
    check_tensor(tensor, str(path), shape)
    kv = from_tensor(tensor, shape, metadata.position_mode)
    texts = tuple(texts) or (TEXT,)

    model, problem = _find_backbone(folder, metadata, backbone)
    own = None if model is None else _read(model, kv, texts, _name(metadata, backbone))
    return Inspection(
        folder=folder,
        metadata=metadata,
        written_by="prefix_jax" if (folder / OWN_CONFIG).is_file() else "PEFT",
        length=kv.length,
        numbers=tensor.size,
        stored_bytes=path.stat().st_size,
        share=None if model is None else tensor.size / count(model),
        backbone_found=problem,
        texts=texts if own is not None else (),
        layers=tuple(_layers(kv, own)),
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    """What the backbone makes of the texts, by layer."""

    key_norm: Float[np.ndarray, "L"]
    value_norm: Float[np.ndarray, "L"]
    mass: Float[np.ndarray, "L H"]


def _name(metadata: Metadata, backbone: str | None) -> str:
    return backbone or metadata.backbone_name or ""


def _find_backbone(
    folder: Path, metadata: Metadata, backbone: str | None
) -> tuple[GPT2 | None, str]:
    """The prefix's backbone, or None, and how that went."""
    name = _name(metadata, backbone)
    if not name:
        return None, "not looked for: the prefix does not name it (--backbone NAME)"
    try:
        model = load_backbone(name, dtype=metadata.backbone_dtype or "float32")  # pyright: ignore[reportArgumentType]
    except InputError as error:
        if backbone is not None:
            raise
        return None, f"could not be loaded: {error}"
    try:
        load_prefix(folder, model, backbone_fingerprint=fingerprint(model))
    except InputError as error:
        return None, f"another one: {error}"
    if metadata.backbone_fingerprint is None:
        return model, "of the same shape (the prefix does not know its weights)"
    return model, "the same, by its fingerprint"


def _read(model: GPT2, kv: KV, texts: Sequence[str], name: str) -> _Read:
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
    tokens = np.zeros((len(encoded), width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    read = jax.device_get(_observe(model, kv, jnp.asarray(tokens), jnp.asarray(mask)))
    return _Read(*(np.asarray(x) for x in read))


@jax.jit
def _observe(model, kv, tokens, mask):
    """Means over the real tokens of all texts: norms [L], attention mass [L H]."""
    plain = model.forward(tokens, mask=mask, collect=True).kv
    seen = model.forward(tokens, prefix=kv, mask=mask, observe=True).prefix_mass
    number = mask.sum()

    def norm(x):
        lengths = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)  # L B T H
        return (lengths.mean(-1) * mask).sum((1, 2)) / number

    mass = (seen * mask[:, None]).sum((1, 3)) / number
    return norm(plain.keys), norm(plain.values), mass


def _layers(kv: KV, own: _Read | None):
    norms = [
        np.linalg.norm(x[:, 0], axis=-1).mean((1, 2)) for x in (kv.keys, kv.values)
    ]
    for layer, (key, value) in enumerate(zip(*norms, strict=True)):
        key, value = float(key), float(value)
        if own is None:
            yield Layer(key, value, None, None, None)
            continue
        yield Layer(
            key,
            value,
            key / float(own.key_norm[layer]),
            value / float(own.value_norm[layer]),
            tuple(own.mass[layer].tolist()),
        )
