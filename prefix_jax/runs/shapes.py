"""What a run's programs take, as shapes alone: no weight is made or read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from prefix_jax.config import Config
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.split import Params, split
from prefix_jax.learning.step import TrainState, init_train_state
from prefix_jax.mesh import by_rows, layout
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.families import RELEASED, random_backbone
from prefix_jax.model.loading import load_config
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.shape import Shape
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.prepare import how_to_load

Batch = Mapping[str, jax.ShapeDtypeStruct]


def backbone_config(name: str) -> Shape:
    """Of models that are known by name without a look at any file, else of those.

    A folder of that name comes first, as for `load_backbone`.
    """
    known = RELEASED.get(name) if not Path(name).is_dir() else None
    return known or load_config(name)


def backbone_shapes(config: Config, mesh: Mesh | None = None) -> Backbone:
    """The backbone, as the recipe wants it on these devices."""
    wanted = config.backbone
    how = how_to_load(wanted, mesh)

    def make(key):
        shape = backbone_config(wanted.name)
        made = random_backbone(
            shape,
            key=key,
            **how,
        )
        if wanted.weights == "pretrained":
            made = jax.tree.map(lambda x: x.astype(made.dtype), made)
        return made

    return placed(jax.eval_shape(make, jax.random.key(0)), mesh)


def train_shapes(config: Config, mesh: Mesh | None = None) -> tuple[TrainState, Params]:
    """State and frozen parameters before the first step."""
    optimizer = make_optimizer(config.optim, config.train.steps)

    def start(backbone, key):
        params: Params = {"backbone": backbone}
        if config.train.method == "prefix":
            params["prefix"] = init_prefix(backbone, _unread(config.prefix), key=key)
        trainable, frozen = split(params, config.train.method)
        return init_train_state(trainable, optimizer, key), frozen

    shapes = jax.eval_shape(start, backbone_shapes(config, mesh), jax.random.key(0))
    return placed(shapes, mesh)


def batch_shapes(config: Config, mesh: Mesh | None = None) -> Batch:
    """The largest batch that the step is compiled for."""
    data: DataConfig = config.data
    length = data.pack or max(data.buckets, default=data.max_length)
    rows = config.train.batch_size, length
    kinds = {
        "tokens": jnp.int32,
        "mask": jnp.bool_,
        "loss_mask": jnp.bool_,
        "segments": jnp.int32,
    }
    where = None if mesh is None else by_rows(mesh)
    return {
        name: jax.ShapeDtypeStruct(rows, kind, sharding=where)
        for name, kind in kinds.items()
    }


def _unread(config: PrefixConfig) -> PrefixConfig:
    """A prefix of the same shape that starts from nothing that must be read."""
    if config.longest is None:
        raise InputError(
            "prefix.length is None, so it depends on texts that are not read here; "
            "give a number, such as --prefix.length 10"
        )
    plain = PrefixConfig()
    names = ("words", "labels", "start", "examples")
    return dataclasses.replace(
        config, init="random", **{name: getattr(plain, name) for name in names}
    )


def placed(shapes: PyTree, mesh: Mesh | None) -> PyTree:
    """The same shapes, laid out over a mesh."""
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        layout(shapes, mesh),
    )
