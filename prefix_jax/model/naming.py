"""How a family's leaves are called, and lie, in Hugging Face's files."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

HEAD = "lm_head.weight"
"""The output head, the one tensor without a family's `base` before its name."""

Tensor = Float[np.ndarray, "..."]


class Part(NamedTuple):
    """One layer's part of a leaf, or a whole leaf outside the layers."""

    tensors: Mapping[str, tuple[int, ...]]
    """Names and shapes of what it is made of."""
    read: Callable[[Sequence[Tensor]], Tensor]
    """The part, from its tensors in that order."""
    write: Callable[[Tensor], Sequence[Tensor]]
    """The tensors again."""


class Names(NamedTuple):
    """What tensors are called, without the `base` that all but the head have."""

    base: str
    embedding: str
    """The token embedding."""
    layer: str
    """What stands before the names of a layer's tensors: `{}` is its number."""
    described: Callable[[str, tuple[int, ...]], Part]
    """The leaf of that path and of that shape (within one layer)."""
    buffers: re.Pattern[str]
    """What older files hold besides weights."""

    def part(self, path: str, shape: tuple[int, ...], layer: int | None = None) -> Part:
        """What a leaf, or a layer's part of it, is made of."""
        part = self.described(path, shape)
        before = "" if layer is None else self.layer.format(layer)
        tensors = {f"{before}{name}": size for name, size in part.tensors.items()}
        return part._replace(tensors=tensors)


def same(name: str, shape: tuple[int, ...]) -> Part:
    """A tensor that is the leaf."""
    return reshaped(name, shape, shape)


def reshaped(name: str, stored: tuple[int, ...], shape: tuple[int, ...]) -> Part:
    """A tensor of the leaf's numbers, in their order."""
    return Part(
        {name: stored},
        lambda tensors: tensors[0].reshape(shape),
        lambda part: [part.reshape(stored)],
    )
