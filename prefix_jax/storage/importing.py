"""Prefixes that others trained, as ours.

Read are, from a folder or a file (safetensors, or `.bin` through torch's weights_only):

    PEFT PREFIX_TUNING      prompt_embeddings [P, L*2*D], as `load_prefix` reads it
    PEFT PROMPT_TUNING      prompt_embeddings [P, D]
    Li & Liang's code and   wte.weight [P, D], control_trans.0.{weight,bias} [M, D],
    AdapterHub, with MLP    control_trans.2.{weight,bias} [L*2*D, M], under any prefix
    AdapterHub, flat        control_trans [P*L*2*D], under any prefix

Their columns are ordered alike (see `peft_layout`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_kinds import EmbeddingPrefix
from prefix_jax.model.prefix_start import embedding_scale
from prefix_jax.model.tensor_files import FLOATS, Stored, open_tensors, read_json
from prefix_jax.storage.metadata import OWN_TENSORS
from prefix_jax.storage.peft_layout import (
    PEFT_TYPES,
    TENSOR,
    check_tensor,
    differing,
    from_tensor,
)

CONFIG = "adapter_config.json"
STEMS = ("adapter_model", "pytorch_adapter", "model", "pytorch_model")
"""Names that weight files have: PEFT's, AdapterHub's, and a plain checkpoint's."""

_INNER, _OUTER = "control_trans.0", "control_trans.2"


class Found(NamedTuple):
    """A prefix of others, and what it was."""

    prefix: KV | EmbeddingPrefix
    kind: str
    """In words, such as `PEFT PREFIX_TUNING`."""

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


def import_prefix(source: Path | str, backbone: GPT2) -> KV:
    """The prefix [L 1 P H K] in f32 that a folder or a file of others holds.

    Raises InputError, with the reason, for what is not a prefix of this backbone or
    cannot be one here: gates, cross-attention, a network that is not the paper's.
    """
    prefix = find_prefix(source, backbone).prefix
    return prefix if isinstance(prefix, KV) else prefix.fold(backbone)


def find_prefix(source: Path | str, backbone: GPT2) -> Found:
    """As `import_prefix`, with the kind of prefix that was found."""
    source = Path(source)
    folder = source if source.is_dir() else source.parent
    if source in (folder, folder / OWN_TENSORS) and (folder / OWN_TENSORS).is_file():
        raise InputError(
            f"{source} holds a prefix as this library stores it, which needs no "
            f"import; give the folder {folder} to what is to use it"
        )
    tensors = open_tensors(source, STEMS)
    # A file that is given by itself is still what the description beside it says.
    place = folder / CONFIG
    config = read_json(place) if place.is_file() else {}
    kind = config.get("peft_type")
    if kind is not None and kind not in PEFT_TYPES.values():
        raise InputError(
            f"{place}: peft_type is {kind!r}; only PREFIX_TUNING and PROMPT_TUNING "
            "hold a prefix"
        )
    if kind is not None and (others := differing(config, backbone.config)):
        raise InputError(
            f"{place} describes another backbone: {'; '.join(others)}; give the one "
            "that it was trained with: --backbone NAME_OR_FOLDER"
        )
    if TENSOR in tensors:
        tensor = _read(tensors, TENSOR, source)
        said = config.get("num_virtual_tokens")
        if said is not None and tensor.ndim and said != len(tensor):
            raise InputError(
                f"{source} holds {len(tensor)} positions, but {place} says "
                f"num_virtual_tokens {said!r}; the files do not belong together"
            )
        return _from_peft(tensor, kind, source, backbone)
    if any("control_trans" in name for name in tensors):
        return _from_control(tensors, config, source, backbone)
    raise InputError(
        f"{source} holds the tensors {', '.join(sorted(tensors)[:6]) or '(none)'}; "
        f"expected {TENSOR} (PEFT) or control_trans (Li & Liang's code, AdapterHub)"
    )


def _from_peft(tensor, kind, source, backbone) -> Found:
    config = backbone.config
    width = tensor.shape[-1] if tensor.ndim == 2 else 0
    # Without a description the width tells: one vector a position, or all layers'.
    if kind == "PROMPT_TUNING" or (kind is None and width == config.n_embd):
        check_tensor(tensor, str(source), config, "embedding")
        config.check_room(len(tensor), f"the prompt in {source}")
        prefix = EmbeddingPrefix(jnp.asarray(tensor), embedding_scale(backbone))
        return Found(prefix, "PEFT PROMPT_TUNING (embeddings)")
    return Found(_shifted(tensor, source, config), "PEFT PREFIX_TUNING")


def _from_control(tensors, config, source, backbone) -> Found:
    if gates := [name for name in tensors if "prefix_gates" in name]:
        raise InputError(
            f"{source} has gates ({gates[0]}): they weigh the prefix by the text, "
            "which fixed keys and values cannot do"
        )
    names = [name for name in tensors if "control_trans" in name]
    groups = {name.partition("control_trans")[0] for name in names}
    if len(groups) > 1:
        raise InputError(
            f"{source} holds {len(groups)} prefixes ({', '.join(sorted(groups))}), as "
            "of an encoder-decoder; only a decoder's own can be read"
        )
    (group,) = groups
    shape = backbone.config
    columns = shape.n_layer * 2 * shape.n_embd
    if f"{group}control_trans" in tensors:
        flat = _read(tensors, f"{group}control_trans", source)
        if flat.size % columns:
            raise InputError(
                f"{source}: {flat.size} numbers are not positions of {columns}, which "
                f"this backbone needs ({shape.n_layer} layers, width {shape.n_embd})"
            )
        tensor, kind = flat.reshape(-1, columns), "AdapterHub's flat prefix"
    else:
        tensor = _fold(tensors, group, config, source, shape)
        kind = "the paper's MLP (Li & Liang, AdapterHub), folded"
    return Found(_shifted(tensor, source, shape), kind)


def _shifted(tensor: Float[np.ndarray, "..."], source: Path, config: GPT2Config) -> KV:
    check_tensor(tensor, str(source), config)
    config.check_room(len(tensor), f"the prefix in {source}")
    return from_tensor(tensor, config)


def _fold(tensors, group, config, source, shape) -> Float[np.ndarray, "P C"]:
    """The paper's network, run once in f64."""
    columns = shape.n_layer * 2 * shape.n_embd
    # AdapterHub nests what it says of the network.
    nested = config.get("config")
    network = nested if isinstance(nested, dict) else config
    inner = network.get("non_linearity", "tanh")
    extra = [n for n in tensors if n.startswith(f"{group}control_trans.4")]
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
    shapes = [tensors[name].shape for name in names]
    length, width, hidden = *(*shapes[0], 0, 0)[:2], *(*shapes[2], 0)[:1]
    expected = [(length, width), (hidden, width), (hidden,), (columns, hidden)]
    if shapes != [*expected, (columns,)]:
        said = ", ".join(f"{n} {list(tensors[n].shape)}" for n in names)
        raise InputError(
            f"{source}: shapes do not fit together, or not the backbone, for which "
            f"{_OUTER}.bias would have [{columns}]: {said}"
        )
    shape.check_room(length, f"the prefix in {source}")
    embedding, w1, b1, w2, b2 = (
        _read(tensors, name, source).astype(np.float64) for name in names
    )
    with np.errstate(all="ignore"):  # what is not finite is refused afterwards
        folded = np.tanh(embedding @ w1.T + b1) @ w2.T + b2
        return folded.astype(np.float32)


def _read(
    tensors: Mapping[str, Stored], name: str, source: Path
) -> Float[np.ndarray, "..."]:
    stored = tensors[name]
    if stored.dtype not in FLOATS:
        raise InputError(f"{source}: {name} is {stored.dtype}; expected floating point")
    return stored.read_f32()
