"""The state of a run as named arrays: what ties a checkpoint to it.

`trainable/prefix/keys`, `opt_state/1/0/mu/prefix/keys`, `key`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from prefix_jax.errors import InputError
from prefix_jax.learning.split import leaf_names
from prefix_jax.learning.step import TrainState

# Where the prefix length stands in the arrays that have it, to name it in errors.
_LENGTH_AXIS = {"trainable/prefix/keys": 1, "trainable/prefix/embedding": 0}


def _raw(state: TrainState) -> TrainState:
    """The state with its typed random key as the numbers that can be stored."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def to_arrays(state: TrainState) -> dict[str, jax.Array]:
    """Its arrays by leaf name, the random key as numbers."""
    raw = _raw(state)
    names, leaves = leaf_names(raw), jax.tree.leaves(raw)
    if len(set(names)) != len(names):
        raise ValueError(f"leaf names are not unique: {names}")
    return dict(zip(names, leaves, strict=True))


def from_arrays(arrays: Mapping[str, jax.Array], like: TrainState) -> TrainState:
    """What `to_arrays` took apart, in the structure of `like`."""
    raw = _raw(like)
    leaves = [arrays[name] for name in leaf_names(raw)]
    state = jax.tree.unflatten(jax.tree.structure(raw), leaves)
    key = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key))
    return dataclasses.replace(state, key=key)


def facts(array: jax.Array) -> dict[str, Any]:
    """What is remembered of an array besides its bytes."""
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def check_arrays(
    folder: Path | epath.Path,
    saved: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, jax.Array],
) -> None:
    """InputError where `saved` facts are not those of the `wanted` arrays.

    Orbax itself would cast a wrong type silently and fail obscurely on a shape.
    """
    asked = {name: facts(array) for name, array in wanted.items()}
    for name, axis in _LENGTH_AXIS.items():
        if name in saved and name in asked:
            there, here = saved[name]["shape"][axis], asked[name]["shape"][axis]
            if there != here:
                raise InputError(
                    f"checkpoint {folder} has a prefix of length {there}, the run asks "
                    f"for {here}: use another --workdir, or --prefix.length {there}"
                )

    def text(facts):
        return f"{facts['dtype']}{facts['shape']}" if facts else "nothing"

    differences = [
        f"{name}: saved {text(saved.get(name))}, this run {text(asked.get(name))}"
        for name in sorted(saved.keys() | asked.keys())
        if saved.get(name) != asked.get(name)
    ]
    if differences:
        more = len(differences) - 6
        shown = "; ".join(differences[:6]) + (f"; and {more} more" if more > 0 else "")
        raise InputError(
            f"checkpoint {folder} is of another recipe ({shown}): "
            "use another --workdir, or the options that the run was started with"
        )
