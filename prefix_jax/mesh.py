"""Devices and where arrays live on them."""

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from prefix_jax.config import MeshConfig
from prefix_jax.errors import InputError, counted

P = ParamSpec("P")
T = TypeVar("T")

AXES = ("data", "fsdp", "tensor")

PARTS: dict[str, tuple[str | None, ...]] = {
    "token_embedding": (None, "fsdp"),
    "position_embedding": (None, "fsdp"),
    "head": (None, "fsdp"),
    "qkv/kernel": (None, "fsdp", "tensor", None, None),
    "qkv/bias": (None, "tensor", None, None),
    "out/kernel": (None, "tensor", None, "fsdp"),
    "up/kernel": (None, "fsdp", "tensor"),
    "up/bias": (None, "tensor"),
    "gate_up/kernel": (None, "fsdp", None, "tensor"),
    "gate_up/bias": (None, None, "tensor"),
    "down/kernel": (None, "tensor", "fsdp"),
}
"""Axes of the mesh that the axes of the backbone's parameters are parted over. Heads
and the MLP's width are, for `tensor`, as Megatron has them (Shoeybi et al. 2019): two
sums over devices a layer. The vocabulary is not: its size seldom divides."""


def make_mesh(
    config: MeshConfig = MeshConfig(),
    *,
    batch_size: int | None = None,
    given: Sequence | None = None,
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`, of the sizes in `config`.

    `data` None: as many devices as can share a batch of `batch_size` rows evenly; all,
    where several processes each have some. `given`: devices to take in
    place of those that are there. Raises InputError for more devices than there are, a
    batch they cannot share, or `tensor` over devices of several processes.
    """
    devices = jax.devices() if given is None else given
    processes = {device.process_index for device in devices}
    parts = config.fsdp * config.tensor
    data = config.data
    if data is None:
        data = len(devices) // parts
        if data and batch_size is not None and len(processes) == 1:
            shares = [
                n for n in range(1, data + 1) if not batch_size % (n * config.fsdp)
            ]
            data = max(shares, default=1)
    number = data * parts
    if not 1 <= number <= len(devices):
        raise InputError(
            f"mesh.data {config.data}, mesh.fsdp {config.fsdp} and mesh.tensor "
            f"{config.tensor} ask for {max(number, parts)} devices; {len(devices)} "
            f"{devices[0].platform} devices are there"
        )
    if len(processes) > 1 and number < len(devices):
        raise InputError(
            f"mesh.data {config.data}, mesh.fsdp {config.fsdp} and mesh.tensor "
            f"{config.tensor} are {number} of {len(devices)} devices; a run of "
            f"{len(processes)} processes takes all of them: leave out mesh.data"
        )
    rows = data * config.fsdp
    if batch_size is not None and batch_size % rows:
        raise InputError(
            f"a batch of {batch_size} rows (train.batch_size by train.accumulate) "
            f"cannot be split over {rows} devices; use a multiple of {rows}, or fewer "
            "devices with mesh.data and mesh.fsdp"
        )
    # Devices of a process stand together, so that those that share rows are one's own;
    # make_mesh would order them by their wires, and mix processes.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered[:number]).reshape(data, config.fsdp, config.tensor)
    for shared in grid.reshape(rows, config.tensor):
        if len({device.process_index for device in shared}) > 1:
            raise InputError(
                f"mesh.tensor {config.tensor} would share rows between processes, each "
                "of which reads rows of its own; use a divisor of "
                f"{len(devices) // len(processes)}, the devices of each"
            )
    # Auto axes: with the default of jax.make_mesh an embedding lookup is an error.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_axes(mesh: Mesh | None) -> None:
    """InputError for a mesh that `make_mesh` has not made."""
    if mesh is not None and mesh.axis_names != AXES:
        raise InputError(
            f"the mesh has the axes {', '.join(map(str, mesh.axis_names))}; expected "
            f"{', '.join(AXES)}, as make_mesh gives them"
        )


def check_heads(config: MeshConfig, heads: int, backbone: str) -> None:
    """InputError where the backbone's heads of keys cannot be dealt out to `tensor`.

    Those devices would all compute the same.
    """
    if heads % config.tensor:
        raise InputError(
            f"mesh.tensor is {config.tensor}, but {backbone}'s {heads} heads of keys "
            f"cannot be dealt out to so many devices; give a divisor of {heads} "
            "(mesh.fsdp parts the weights over any number)"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis (rows of a batch) split over the devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def by_prompts(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """An array's `axis` of prompts to go on from, split over the axis `data` only.

    Were rows parted over `fsdp` too, all weights would be sent around for each token.
    """
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def shared_rows(prompts: int, mesh: Mesh | None) -> int:
    """So many rows or a few more, which devices can share `by_prompts`."""
    share = 1 if mesh is None else mesh.shape["data"]
    return -(-prompts // share) * share


def traced_under(mesh: Mesh | None, function: Callable[P, T]) -> Callable[P, T]:
    """The same function, which finds the mesh around it when it is traced.

    XLA finds out by itself how devices share all that it computes; not so kernels
    (`model.flash`), which ask for the mesh.
    """
    if mesh is None:
        return function

    @functools.wraps(function)
    def traced(*arguments: P.args, **named: P.kwargs) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **named)

    return traced


def layout(tree: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """Where the leaves of a tree lie: a NamedSharding in the place of each.

    The backbone's parameters, their gradients and the optimizer's moments of them are
    parted as `PARTS` says, along an axis only where its size divides by the devices;
    all else, the prefix among it, is on every device.
    """

    def place(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        names = names.removesuffix("/value").split("/")
        spec: tuple[str | None, ...] = ()
        if "prefix" not in names:
            spec = PARTS.get("/".join(names[-2:]), PARTS.get(names[-1], ()))
        axes = spec or (None,) * len(leaf.shape)
        fitting = (
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        )
        return NamedSharding(mesh, PartitionSpec(*fitting))

    return jax.tree_util.tree_map_with_path(place, tree)


def shared_by(mesh: Mesh) -> str:
    """How many devices and processes share a batch, in words: what a sum depends on."""
    processes = jax.process_count()
    of = f" of {processes} processes" if processes > 1 else ""
    return counted(mesh.size, "device") + of


def sharing(mesh: Mesh) -> str:
    """The line that tells who shares a batch, and how, where it is not by rows only."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    share = "share" if mesh.size > 1 else "computes"
    found = f"{shared_by(mesh)} (of {jax.device_count()}) {share} each batch"
    ways = [
        (tensor > 1, f"rows over {mesh.size // tensor}, each of them over {tensor}"),
        (is_parted(mesh), f"the backbone is in {fsdp * tensor} parts"),
    ]
    return "; ".join([found, *(way for holds, way in ways if holds)])


def elsewhere(before: str | None, now: str) -> str:
    """What it means to go on `shared_by` others; empty where they are as before."""
    if before in (None, now):
        return ""
    return (
        f"going on with {now}, before with {before}: the order of the data is the "
        "same, and values are to f32 rounding"
    )


def put(tree: PyTree, mesh: Mesh) -> PyTree[jax.Array]:
    """The arrays of a tree on the devices, as `layout` has them.

    Of several processes each gives the whole tree, the same in all.
    """
    return jax.tree.map(_put, tree, layout(tree, mesh))


def _put(array: jax.Array, where: NamedSharding) -> jax.Array:
    if where.is_fully_addressable or not array.is_fully_addressable:
        return jax.device_put(array, where)
    # Across processes device_put refuses keys, and sends every array around to compare.
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, where, lambda part: host[part])


def on_host(tree: PyTree) -> PyTree[np.ndarray]:
    """The arrays of a tree, whole, in this machine's memory.

    All processes must call it: a part may lie on another's devices.
    """
    if all(array.is_fully_addressable for array in jax.tree.leaves(tree)):
        return jax.device_get(tree)  # all copies at once

    def fetch(array):
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return process_allgather(array, tiled=True)

    return jax.tree.map(fetch, tree)


def put_prompts(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays of prompts, whole and the same in each process, `by_prompts`."""
    return {
        name: jax.make_array_from_callback(
            array.shape, by_prompts(mesh), array.__getitem__
        )
        for name, array in arrays.items()
    }


def is_parted(mesh: Mesh) -> bool:
    """Whether devices hold different parts of the backbone."""
    return mesh.shape["fsdp"] * mesh.shape["tensor"] > 1


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host batch on the devices, split by rows; each process gives its own rows."""
    sharding = by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
