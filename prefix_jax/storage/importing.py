"""Prefixes that others trained, as ours.

Read are, from a folder or a file (safetensors, or `.bin` through torch's weights_only):

    PEFT PREFIX_TUNING      prompt_embeddings [P, L*2*D], as `load_prefix` reads it
    PEFT PROMPT_TUNING      prompt_embeddings [P, D]
    Li & Liang's code       wte.weight [P, D], control_trans.0.{weight,bias} [M, D],
                            control_trans.2.{weight,bias} [L*2*D, M]; without the
                            MLP control_trans [P*L*2*D], or [2*L, 1, H, P, K] where
                            it started from words
    AdapterHub              the same, but for the last, under prefix_tunings.NAME.

Their columns are ordered alike (see `peft_layout`). Text counts its positions from P,
as after Hugging Face's past keys and values; but with AdapterHub, which joins the
prefix to keys and values within attention and moves no position, it counts from 0.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_kinds import EmbeddingPrefix
from prefix_jax.model.prefix_start import embedding_scale
from prefix_jax.model.shape import Shape
from prefix_jax.model.tensor_files import FLOATS, Stored, open_tensors, read_json
from prefix_jax.prefix_config import PositionMode
from prefix_jax.storage.metadata import (
    OWN_CONFIG,
    OWN_TENSORS,
    PEFT_CONFIG,
    PEFT_TENSORS,
)
from prefix_jax.storage.peft_layout import (
    PEFT_TYPES,
    TENSOR,
    check_tensor,
    differing,
    from_tensor,
)

STEMS = ("adapter_model", "pytorch_adapter", "model", "pytorch_model")
"""Names that weight files have: PEFT's, AdapterHub's, and a plain checkpoint's."""

_CONTROL = "control_trans"
_INNER, _OUTER = f"{_CONTROL}.0", f"{_CONTROL}.2"
_ADAPTER_HUB = "prefix_tunings."
"""Part of the name of every tensor of a prefix that AdapterHub wrote."""

_TRAINING = ("optimizer", "optimizers", "scheduler", "lr_scheduler", "scaler")
"""First part of the names of what only its training needs."""
_OTHERS = {
    "wte2": "an infix, whose keys and values are made anew for each source",
    "score.": "a classification head, which reads the text with the prefix",
    "adapters.": "bottleneck adapters, which were trained to work with the prefix",
    "loras.": "LoRA, which was trained to work with the prefix",
    "lora_": "LoRA, which was trained to work with the prefix",
}
"""Part of the names of what goes with a prefix and cannot be had without it."""


class Found(NamedTuple):
    """A prefix of others, and what it was."""

    prefix: KV | EmbeddingPrefix
    kind: str
    """In words, such as `PEFT PREFIX_TUNING`."""
    notes: tuple[str, ...] = ()
    """Sentences on what was assumed, and on what cannot be done with it."""

    @property
    def length(self) -> int:
        """Positions."""
        prefix = self.prefix
        return prefix.length if isinstance(prefix, KV) else prefix.vectors.shape[0]

    @property
    def numbers(self) -> int:
        """Numbers that it consists of."""
        prefix = self.prefix
        if isinstance(prefix, KV):
            return prefix.keys.size + prefix.values.size
        return prefix.vectors.size


def import_prefix(source: Path | str, backbone: Backbone) -> KV:
    """The prefix [L 1 P H K] in f32 that a folder or a file of others holds.

    Of AdapterHub's the `position_mode` is "unshifted", which PEFT cannot represent.
    Raises InputError, with the reason, for what is not a prefix of this backbone or
    cannot be one here (gates, cross-attention, a network that is not the paper's), and
    for what this library stored, which `load_prefix` reads.
    """
    prefix = find_prefix(source, backbone).prefix
    return prefix if isinstance(prefix, KV) else prefix.fold(backbone)


def find_prefix(source: Path | str, backbone: Backbone) -> Found:
    """As `import_prefix`, with the kind of prefix that was found."""
    source = Path(source)
    folder = source if source.is_dir() else source.parent
    ours = any((folder / name).is_file() for name in (OWN_CONFIG, OWN_TENSORS))
    if ours and (source == folder or source.name in (PEFT_TENSORS, OWN_TENSORS)):
        raise InputError(
            f"{source} holds a prefix as this library stores it, which needs no "
            f"import: load_prefix reads the folder {folder}, and checks that the "
            "backbone is its own"
        )
    # A file that is given by itself is still what the description beside it says.
    place = folder / PEFT_CONFIG
    described = read_json(place) if place.is_file() else {}
    given = _Given(source, open_tensors(source, STEMS), place, described)
    kind = described.get("peft_type")
    if kind is not None and kind not in PEFT_TYPES.values():
        raise InputError(
            f"{place}: peft_type is {kind!r}; only PREFIX_TUNING and PROMPT_TUNING "
            "hold a prefix"
        )
    if others := differing(described, backbone.config):
        raise InputError(
            f"{place} describes another backbone: {'; '.join(others)}; give the one "
            "that it was trained with: --backbone NAME_OR_FOLDER"
        )
    if TENSOR in given.tensors:
        return _from_peft(given, kind, backbone)
    if any(_CONTROL in name for name in given.tensors):
        return _from_control(given, backbone.config)
    raise InputError(
        f"{source} holds the tensors {', '.join(sorted(given.tensors)[:6]) or '(none)'}"
        f"; expected {TENSOR} (PEFT) or {_CONTROL} (Li & Liang's code, AdapterHub)"
    )


class _Given(NamedTuple):
    """The files of somebody's prefix."""

    source: Path
    """Folder or file, as given."""
    tensors: dict[str, Stored]
    place: Path
    """Where the description is, if there is one."""
    described: dict[str, Any]

    def read(self, name: str) -> Float[np.ndarray, "..."]:
        """One tensor in f32."""
        stored = self.tensors[name]
        if stored.dtype not in FLOATS:
            raise InputError(
                f"{self.source}: {name} is {stored.dtype}; expected floating point"
            )
        return stored.read_f32()

    def check_alone(self, *names: str) -> None:
        """InputError where there are more tensors than these, other than training's."""
        for name, stored in self.tensors.items():
            if name in names or name.partition(".")[0] in _TRAINING:
                continue
            whose = [what for part, what in _OTHERS.items() if part in name]
            raise InputError(
                f"{self.source}: {name} {list(stored.shape)} is no part of a prefix, "
                f"but {whose[0] if whose else 'of something else that was trained'}; "
                "read alone the prefix would do something else, so it is refused. "
                "Give a file of the prefix alone if it was trained without this"
            )

    def check_length(self, field: str, said: object, length: int) -> None:
        """InputError unless the description says nothing or so many positions."""
        if said not in (None, length):
            raise InputError(
                f"{self.source} holds {length} positions, but {self.place} says "
                f"{field} {said!r}; the files do not belong together, or it is another "
                "backbone's"
            )


def _from_peft(given: _Given, kind: str | None, backbone: Backbone) -> Found:
    config, source = backbone.config, given.source
    given.check_alone(TENSOR)
    tensor = given.read(TENSOR)
    if tensor.ndim:
        said = given.described.get("num_virtual_tokens")
        given.check_length("num_virtual_tokens", said, len(tensor))
    width = tensor.shape[-1] if tensor.ndim == 2 else 0
    # Without a description the width tells: one vector a position, or all layers'.
    if kind == "PROMPT_TUNING" or (kind is None and width == config.n_embd):
        check_tensor(tensor, str(source), config, "embedding")
        config.check_room(len(tensor), f"the prompt in {source}")
        prefix = EmbeddingPrefix(jnp.asarray(tensor), embedding_scale(backbone))
        return Found(prefix, "PEFT PROMPT_TUNING (embeddings)")
    return Found(_kv(tensor, source, config, "shifted"), "PEFT PREFIX_TUNING")


def _from_control(given: _Given, config: Shape) -> Found:
    tensors, source = given.tensors, given.source
    if gates := [name for name in tensors if "prefix_gates" in name]:
        raise InputError(
            f"{source} has gates ({gates[0]}): they weigh the prefix by the text, "
            "which fixed keys and values cannot do"
        )
    groups = {name.partition(_CONTROL)[0] for name in tensors if _CONTROL in name}
    if len(groups) > 1:
        raise InputError(
            f"{source} holds {len(groups)} prefixes ({', '.join(sorted(groups))}), as "
            "of an encoder-decoder; only a decoder's own can be read"
        )
    (group,) = groups
    # AdapterHub nests what it says of the prefix.
    nested = given.described.get("config")
    said = nested if isinstance(nested, dict) else given.described
    if left_out := said.get("leave_out"):
        raise InputError(
            f"{given.place}: leave_out is {left_out}, so these layers have no prefix; "
            "only a prefix for all layers can be read"
        )
    notes, length = [], said.get("prefix_length")
    if f"{group}{_CONTROL}" in tensors:
        tensor, kind = _flat(given, f"{group}{_CONTROL}", config), "flat prefix"
        if length is None and tensors[f"{group}{_CONTROL}"].shape == (tensor.size,):
            notes.append(
                f"no description says how long the prefix is: its {tensor.size:,} "
                f"numbers are read as {len(tensor)} positions of "
                f"{tensor.shape[1]:,}, which is right for this backbone only"
            )
    else:
        tensor, kind = _fold(given, group, said, config), "MLP, folded"
    given.check_length("prefix_length", length, len(tensor))
    if _ADAPTER_HUB not in group:
        kv = _kv(tensor, source, config, "shifted")
        return Found(kv, f"Li & Liang's {kind}", tuple(notes))
    notes.append(
        "the text counts its positions from 0, as in AdapterHub; PEFT starts it after "
        "the prefix, so there is no export to PEFT"
    )
    kv = _kv(tensor, source, config, "unshifted")
    return Found(kv, f"AdapterHub's {kind}", tuple(notes))


def _kv(
    tensor: Float[np.ndarray, "..."],
    source: Path,
    config: Shape,
    position_mode: PositionMode,
) -> KV:
    check_tensor(tensor, str(source), config)
    if position_mode == "shifted":
        config.check_room(len(tensor), f"the prefix in {source}")
    kv = from_tensor(tensor, config)
    return dataclasses.replace(kv, position_mode=position_mode)


def _flat(given: _Given, name: str, config: Shape) -> Float[np.ndarray, "P C"]:
    """What was trained without a network; as a cache's keys and values, or in a row."""
    given.check_alone(name)
    tensor = given.read(name)
    columns = config.n_layer * 2 * config.kv_width
    cache = config.n_layer * 2, 1, config.kv_heads, config.head_width
    if tensor.ndim == 1 and tensor.size % columns == 0:
        return tensor.reshape(-1, columns)
    if tensor.ndim == 5 and (*tensor.shape[:3], tensor.shape[4]) == cache:
        positions_first = tensor[:, 0].transpose(2, 0, 1, 3)  # P 2L H K
        return positions_first.reshape(len(positions_first), columns)
    raise InputError(
        f"{given.source}: {name} has shape {list(tensor.shape)}; for P positions this "
        f"backbone ({config.n_layer} layers, {config.kv_heads} heads, width "
        f"{config.kv_width}) needs [P*{columns}] or [{cache[0]}, 1, {cache[2]}, P, "
        f"{cache[3]}]"
    )


def _fold(
    given: _Given, group: str, said: dict, config: Shape
) -> Float[np.ndarray, "P C"]:
    """The paper's network, run once in f64."""
    tensors, source = given.tensors, given.source
    inner = said.get("non_linearity", "tanh")
    extra = [n for n in tensors if n.startswith(f"{group}{_CONTROL}.4")]
    if extra or str(inner).lower() != "tanh":
        raise InputError(
            f"{source}: its network is not the paper's (one hidden layer, tanh); there "
            f"is {extra[0] if extra else inner}: fold it with the code that trained it"
        )
    names = [f"{group}wte.weight"]
    for layer in (_INNER, _OUTER):
        names += [f"{group}{layer}.weight", f"{group}{layer}.bias"]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(f"{source} lacks {', '.join(missing)}")
    given.check_alone(*names)
    columns = config.n_layer * 2 * config.kv_width
    shapes = [tensors[name].shape for name in names]
    length, width, hidden = *(*shapes[0], 0, 0)[:2], *(*shapes[2], 0)[:1]
    expected = [(length, width), (hidden, width), (hidden,), (columns, hidden)]
    if shapes != [*expected, (columns,)]:
        found = ", ".join(f"{n} {list(tensors[n].shape)}" for n in names)
        raise InputError(
            f"{source}: shapes do not fit together, or not the backbone, for which "
            f"{_OUTER}.bias would have [{columns}]: {found}"
        )
    config.check_room(length, f"the prefix in {source}")
    embedding, w1, b1, w2, b2 = (given.read(name).astype(np.float64) for name in names)
    with np.errstate(all="ignore"):  # what is not finite is refused afterwards
        folded = np.tanh(embedding @ w1.T + b1) @ w2.T + b2
    return folded.astype(np.float32)
