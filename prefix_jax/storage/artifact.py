"""A trained prefix on disk, in PEFT's adapter layout where PEFT can represent it.

What the files are is described in `metadata`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prefix_jax.data_config import Task
from prefix_jax.errors import InputError, counted
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_kinds import EmbeddingPrefix, Prefix
from prefix_jax.model.prefix_start import activations
from prefix_jax.model.shape import Shape
from prefix_jax.model.weights import fingerprint
from prefix_jax.storage.files import replaced, write_json
from prefix_jax.storage.metadata import (
    OWN_CONFIG,
    PEFT_CONFIG,
    Metadata,
    check_replaceable,
    read_metadata,
    read_object,
)
from prefix_jax.storage.peft_layout import (
    adapter_config,
    check_tensor,
    differing,
    from_tensor,
    read_tensor,
    to_tensor,
    write_tensor,
)


def save_prefix(
    folder: Path | str,
    prefix: Prefix | KV,
    *,
    backbone: Backbone,
    scores: Mapping[str, object] | None = None,
    recipe: Mapping[str, object] | None = None,
    task: Task | None = None,
    e2e: bool = False,
    base_model_name: str | None = None,
    backbone_fingerprint: str | None = None,
) -> None:
    """Store a prefix, folded, in place of what `folder` held of another prefix.

    Of an embedding prefix the embeddings are stored, as PEFT stores prompt tuning.

    `scores` and `recipe` are kept with it as JSON. `task` and `e2e` (whether sources
    are E2E's meaning representations) say what a prompt for it is; None: text to
    continue. `backbone_fingerprint` saves computing it anew. The files change all at
    once (`storage.files.replaced`).
    Raises InputError for a prefix that does not fit the backbone or is not finite, or a
    folder that holds other things.
    """
    folder = Path(folder).absolute()
    if isinstance(prefix, EmbeddingPrefix):
        tensor, kind = np.asarray(prefix.embeddings(), np.float32), "embedding"
        kv = jax.eval_shape(prefix.fold, backbone)  # nothing of its numbers is stored
    else:
        kv = prefix if isinstance(prefix, KV) else prefix.fold(backbone)
        tensor, kind = to_tensor(kv, backbone.config), "prefix"
    check_tensor(tensor, "the prefix", backbone.config, kind)
    layer_lengths = None
    if kv.lengths is not None:
        lengths = np.asarray(kv.lengths[:, 0]).tolist()
        # Of a bank's row the rest is padding, which is not stored.
        tensor = tensor[: max(lengths)]
        layer_lengths = None if min(lengths) == max(lengths) else tuple(lengths)
    metadata = Metadata(
        length=len(tensor),
        kind=kind,
        position_mode=kv.position_mode,
        placement=kv.placement,
        own_softmax=kv.own_softmax,
        layer_lengths=layer_lengths,
        backbone_name=base_model_name,
        backbone_dtype=str(backbone.dtype),
        backbone_fingerprint=backbone_fingerprint or fingerprint(backbone),
        backbone_config=backbone.config.fields(),
        task=task,
        e2e=e2e,
        scores=None if scores is None else dict(scores),
        recipe=None if recipe is None else dict(recipe),
    )
    write_prefix(folder, tensor, metadata, backbone.config)


def write_prefix(
    folder: Path,
    tensor: Float[np.ndarray, "P C"],
    metadata: Metadata,
    config: Shape,
) -> None:
    """Write the files of a prefix, in place of what `folder` held of another one."""
    check_replaceable(folder)
    with replaced(folder) as fresh:
        write_tensor(fresh / metadata.tensors, tensor)
        write_json(fresh / OWN_CONFIG, metadata.record())
        if metadata.obstacle is None:
            described = adapter_config(
                config, len(tensor), metadata.backbone_name, metadata.kind
            )
            write_json(fresh / PEFT_CONFIG, described)


def load_prefix(
    folder: Path | str, backbone: Backbone, *, backbone_fingerprint: str | None = None
) -> KV:
    """The prefix [L 1 P H K] in f32 that is stored in `folder`, by us or by PEFT.

    Raises InputError where there is none, its files are damaged, it holds NaN or
    infinity, or it was trained for another backbone (shape, configuration or weights;
    what PEFT wrote can be checked for its shape only).
    """
    metadata, tensor = _load(Path(folder), backbone, backbone_fingerprint)
    return stored_kv(tensor, metadata, backbone.config, backbone)


def load_embeddings(
    folder: Path | str, backbone: Backbone, *, backbone_fingerprint: str | None = None
) -> Float[Array, "P D"]:
    """The vectors, f32, of the embedding prefix (prompt tuning) in `folder`.

    Raises InputError as `load_prefix`, and for keys and values.
    """
    metadata, tensor = _load(Path(folder), backbone, backbone_fingerprint)
    if metadata.kind != "embedding":
        raise InputError(
            f"{folder} holds keys and values, which cannot be turned back into "
            'embeddings; give a stored prefix of kind "embedding" (prompt tuning)'
        )
    return jnp.asarray(tensor)


def stored_kv(
    tensor: Float[np.ndarray, "P C"],
    metadata: Metadata,
    config: Shape,
    backbone: Backbone | None,
) -> KV:
    """What a stored tensor means; only of embeddings the backbone is needed."""
    if metadata.kind == "embedding":
        assert backbone is not None
        kv = activations(backbone, jnp.asarray(tensor))
    else:
        kv = from_tensor(tensor, config)
    lengths = None
    if metadata.layer_lengths is not None:
        lengths = jnp.asarray(metadata.layer_lengths, jnp.int32)[:, None]
    return dataclasses.replace(
        kv,
        position_mode=metadata.position_mode,
        lengths=lengths,
        placement=metadata.placement,
        own_softmax=metadata.own_softmax,
    )


def read_stored(
    folder: Path, metadata: Metadata, config: Shape
) -> Float[np.ndarray, "P C"]:
    """The tensor in `folder`, f32, once it is known to be what its description says.

    Raises InputError for damage, and where they do not belong together.
    """
    path = folder / metadata.tensors
    tensor = read_tensor(path)
    check_tensor(tensor, str(path), config, metadata.kind)
    if metadata.length is not None and metadata.length != len(tensor):
        raise InputError(
            f"{path} holds {len(tensor)} positions, but the description beside it says "
            f"{metadata.length}; the files do not belong together"
        )
    lengths = metadata.layer_lengths
    if lengths is not None and len(lengths) != config.n_layer:
        raise InputError(
            f"{folder / OWN_CONFIG}: layer_lengths has {len(lengths)} numbers; the "
            f"backbone has {config.n_layer} layers"
        )
    return tensor


def _load(folder: Path, backbone: Backbone, given: str | None):
    metadata = read_metadata(folder)
    why = other_backbone(folder, metadata, backbone, backbone_fingerprint=given)
    if why is not None:
        raise InputError(
            f"the prefix in {folder} was trained for another backbone"
            + (f", {metadata.backbone_name!r}" if metadata.backbone_name else "")
            + f": {why}; give the one that it was trained with: --backbone "
            "NAME_OR_FOLDER, in train and evaluate --backbone.name NAME_OR_FOLDER"
        )
    tensor = read_stored(folder, metadata, backbone.config)
    if metadata.position_mode == "shifted":
        place = f"the prefix in {folder / metadata.tensors}"
        backbone.config.check_room(len(tensor), place)
    return metadata, tensor


def other_backbone(
    folder: Path,
    metadata: Metadata,
    backbone: Backbone,
    *,
    backbone_fingerprint: str | None = None,
) -> str | None:
    """In words, why the prefix in `folder` is not this backbone's; None: it is.

    By configuration and weights, as far as its files know them.
    """
    peft = read_object(folder / PEFT_CONFIG) or {}
    differences = differing(peft, backbone.config)
    expected = metadata.backbone_fingerprint
    mine = None
    if expected is not None:
        mine = backbone_fingerprint or fingerprint(backbone)
    if expected != mine:
        here, there = backbone.config.fields(), metadata.backbone_config or {}
        kinds = [fields.get(kind := "model_type") for fields in (there, here)]
        if there and kinds[0] != kinds[1] and there.keys() != here.keys():
            # Of another family, every field would be another.
            there, differences = {kind: kinds[0]}, []
        differences += [
            f"{field} {value!r} there, {here.get(field)!r} here"
            for field, value in there.items()
            if here.get(field) != value
        ]
    if differences:
        few, more = differences[:3], len(differences) - 3
        others = f"; and {counted(more, 'other setting')}" if more > 0 else ""
        return f"its configuration differs: {'; '.join(few)}{others}"
    if expected != mine:
        return f"its weights differ (fingerprint {expected} there, {mine} here)"
    return None
