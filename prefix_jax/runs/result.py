"""What a run leaves behind: a prefix in PEFT's layout, or a tuned backbone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from prefix_jax.data.sources import is_e2e
from prefix_jax.distributed import is_first
from prefix_jax.errors import InputError
from prefix_jax.learning.split import Params
from prefix_jax.mesh import on_host, put
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.weights import save_backbone
from prefix_jax.runs.prepare import Setup, how_to_load
from prefix_jax.runs.validate import Validation
from prefix_jax.storage.artifact import load_prefix, save_prefix
from prefix_jax.storage.files import replaced


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    best: Validation
    trained: int
    """Numbers trained."""
    share: float
    """Of the backbone's parameters."""
    seconds: float
    """Wall time up to the last checkpoint, over all calls: compilation, steps,
    validations and saving."""
    finished: bool
    """False after Ctrl-C or SIGTERM: the same command goes on from `step`."""


def save_result(folder: Path, setup: Setup, params: Params, scores: dict) -> None:
    """Write the trained prefix (folded), or the whole tuned backbone.

    It takes the place of what `folder` held, at once. To be called by all processes of
    a run; the first one writes.
    """
    trained = on_host(params["prefix"] if "prefix" in params else params["backbone"])
    if not is_first():
        return
    if "prefix" in params:
        save_prefix(
            folder,
            # On a device of its own: the others do not fold it too.
            jax.tree.map(jnp.asarray, trained),
            backbone=setup.backbone,
            scores=scores,
            recipe=setup.config.to_dict(),
            task=setup.config.data.task,
            e2e=is_e2e(setup.config.data),
            base_model_name=setup.config.backbone.name,
            backbone_fingerprint=setup.fingerprint,
        )
    else:
        with replaced(folder) as fresh:
            save_backbone(fresh, trained)
            setup.tokenizer.save_pretrained(fresh)


def check_result(folder: Path) -> None:
    """InputError if a run has left nothing in `folder`."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; train first, or check --workdir")


def load_result(folder: Path, setup: Setup) -> tuple[Backbone, KV | None]:
    """(backbone, prefix) of what `save_result` wrote.

    Raises InputError if there is nothing, or it does not belong to the backbone.
    """
    check_result(folder)
    if setup.config.train.method == "prefix":
        prefix = load_prefix(
            folder, setup.backbone, backbone_fingerprint=setup.fingerprint
        )
        return setup.backbone, prefix
    how = how_to_load(setup.config.backbone, setup.mesh)
    tuned = load_backbone(str(folder), **how)
    return put(tuned, setup.mesh), None


def stored_bytes(folder: Path) -> int:
    """Size on disk of the weights that a task costs."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
