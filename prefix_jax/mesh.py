"""Devices and where arrays live on them."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from prefix_jax.config import MeshConfig
from prefix_jax.errors import InputError


def make_mesh(
    config: MeshConfig = MeshConfig(), *, batch_size: int | None = None
) -> Mesh:
    """A mesh with one axis, `data`, over `config.data` devices.

    None: as many as can share a batch of `batch_size` rows evenly; all, where several
    processes each have some. Raises InputError for more devices than there are, or a
    batch they cannot share.
    """
    devices = jax.devices()
    number = len(devices)
    if config.data is not None:
        number = config.data
    elif batch_size is not None and jax.process_count() == 1:
        number = max(n for n in range(1, number + 1) if batch_size % n == 0)
    if not 1 <= number <= len(devices):
        raise InputError(
            f"mesh.data is {config.data}; {len(devices)} {devices[0].platform} "
            "devices are there"
        )
    if batch_size is not None and batch_size % number:
        raise InputError(
            f"a batch of {batch_size} rows cannot be split over {number} devices; "
            f"use a multiple of {number}, or fewer devices with mesh.data"
        )
    # Auto axes: with make_mesh's default (Explicit) an embedding lookup is an error.
    return jax.make_mesh(
        (number,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:number]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis (rows of a batch) split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host batch on the devices, split by rows; each process gives its own rows."""
    sharding = by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
