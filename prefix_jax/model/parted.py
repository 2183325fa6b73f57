"""The mesh around what is traced, and which of its axes part rows and heads."""

import math

import jax
from jax.sharding import AxisType

PARTED = {"b": ("data", "fsdp"), "h": ("tensor",)}
"""The axes of a mesh (`prefix_jax.mesh`) that rows and heads are parted over."""


def free_axes() -> dict[str, int]:
    """The sizes of the mesh's axes that XLA would part arrays over; {}: one device."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    # In `pmap` and `shard_map` an axis is "manual": each program has its part already.
    free = {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}
    return free if math.prod(free.values()) > 1 else {}


def parting(mesh: dict[str, int], letter: str, size: int) -> tuple[str, ...] | None:
    """The mesh's axes that an array's axis is parted over; None: all have all of it."""
    names = tuple(name for name in PARTED[letter] if name in mesh)
    return names if size % math.prod(mesh[name] for name in names) == 0 else None


def weights_are_parted() -> bool:
    """Whether the mesh around deals out a backbone's weights (`mesh.layout`)."""
    return any(free_axes().get(name, 1) > 1 for name in ("fsdp", "tensor"))


def devices_of_rows(rows: int) -> int:
    """Over how many devices so many rows are parted."""
    mesh = free_axes()
    return math.prod(mesh[name] for name in parting(mesh, "b", rows) or ())
