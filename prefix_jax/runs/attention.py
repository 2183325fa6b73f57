"""What a backbone makes of texts with a prefix before them: norms, attention."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prefix_jax.data.tokens import Row
from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.weights import fingerprint
from prefix_jax.storage.artifact import load_prefix
from prefix_jax.storage.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class Read:
    """By layer, means over the tokens of the texts."""

    key_norm: Float[np.ndarray, "L"]
    """Euclidean length of the text's own keys without the prefix; so the next."""
    value_norm: Float[np.ndarray, "L"]
    mass: Float[np.ndarray, "L H"] | None
    """Share of attention that goes to the prefix; None for a gated one, which takes no
    share from the text."""


def find_backbone(
    folder: Path,
    metadata: Metadata,
    backbone: str | None = None,
    load: Callable[..., Backbone] = load_backbone,
) -> tuple[Backbone | None, KV | None, str]:
    """The backbone of the prefix in `folder` with the prefix, or None, and how it went.

    `backbone`: name or folder; None: as the prefix says. Raises InputError for one that
    is given and cannot be loaded.
    """
    name = backbone or metadata.backbone_name
    if not name:
        how = "not looked for: the prefix does not name it (--backbone NAME)"
        return None, None, how
    try:
        model = load(name, dtype=metadata.backbone_dtype or "float32")
    except InputError as error:
        if backbone is not None:
            raise
        return None, None, f"could not be loaded: {error}"
    try:
        prefix = load_prefix(folder, model, backbone_fingerprint=fingerprint(model))
    except InputError as error:
        return None, None, f"another one: {error}"
    if metadata.backbone_fingerprint is None:
        how = "of the same shape (the prefix does not know its weights)"
        return model, prefix, how
    return model, prefix, "the same, by its fingerprint"


def read_with(model: Backbone, kv: KV, rows: Sequence[Row]) -> Read:
    """Read rows with a prefix; an infix is seen from where its row's target begins.

    Then only the tokens that see it count for `mass`. The rows must fit the backbone's
    positions beside the prefix.
    """
    width = max(len(row.tokens) for row in rows)
    tokens = np.zeros((len(rows), width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    after = np.zeros(tokens.shape, bool)
    for number, row in enumerate(rows):
        length = len(row.tokens)
        tokens[number, :length], mask[number, :length] = row.tokens, True
        # As in training: a token sees it if the next one is to be predicted.
        after[number, : length - 1] = np.cumsum(row.loss_mask[1:]) > 0
        after[number, length - 1] = True
    read = _observe(model, kv, *map(jnp.asarray, (tokens, mask, after)))
    return Read(*jax.device_get(read))


@jax.jit
def _observe(model, kv, tokens, mask, after):
    """Means over the real tokens of all rows: norms [L], attention mass [L H]."""
    plain = model.forward(tokens, mask=mask, collect=True).kv
    infix = kv.placement == "infix"
    read = model.forward(
        tokens, prefix=kv, mask=mask, observe=True, after=after if infix else None
    )

    def norm(x):
        lengths = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)  # L B T H
        return (lengths.mean(-1) * mask).sum((1, 2)) / mask.sum()

    mass = read.prefix_mass
    if mass is not None:
        seeing = mask & after if infix else mask
        mass = (mass * seeing[:, None]).sum((1, 3)) / seeing.sum()
    return norm(plain.keys), norm(plain.values), mass
