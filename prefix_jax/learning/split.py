"""What is trained: `split` parts the parameter tree, `merge` puts it back.

    params = {"backbone": Backbone, "prefix": Prefix}   (prefix optional)

Both parts keep the tree's shape, with None where the other part has the leaf, so a
gradient of the trainable part, or an optimizer state for it, has no frozen leaf at all.
"""

import re
from typing import Any, NotRequired, TypedDict, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_kinds import Prefix

Tree = TypeVar("Tree")


class Params(TypedDict):
    """The parameter tree; the parts that `split` gives have None leaves."""

    backbone: Backbone
    prefix: NotRequired[Prefix]


# xIELU's beta and eps are stored, never trained (activations.py).
_NO_BUFFER = r"(?!.*/act/(beta|eps)$)"
TRAINABLE: dict[str, str] = {
    "prefix": r"prefix/(?!\w+_scale$)",
    "full": _NO_BUFFER + r"backbone/",
    # `split` parts the layers into two stacks first; GPT-2's top is also ln_f. The tied
    # embedding is an input too and stays frozen, as in the paper's top-2 baseline.
    "top2": _NO_BUFFER + r"backbone/(blocks/1|ln_f|head)(/|$)",
}
TOP_LAYERS = 2


def leaf_names(tree: Any) -> list[str]:
    """Names of the leaves in order, such as `backbone/blocks/0/qkv/kernel`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [_name(path) for path, _ in paths]


def split(params: Params, method: str) -> tuple[Params, Params]:
    """(trainable, frozen): two trees of the shape of `params`, by leaf-name rules.

    Trainable leaves are f32 whatever the backbone's dtype, as the optimizer needs; the
    model casts them where it uses them.
    Raises InputError for an unknown method, or `prefix` without a prefix.
    """
    if method not in TRAINABLE:
        raise InputError(
            f"method {method!r} is unknown; expected one of {', '.join(TRAINABLE)}"
        )
    if method != "prefix":
        top = TOP_LAYERS if method == "top2" else 0
        params = {**params, "backbone": _part_layers(params["backbone"], top)}
    rule = re.compile(TRAINABLE[method])
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    chosen = [rule.match(_name(path)) is not None for path, _ in leaves]
    if not any(chosen):
        raise InputError(
            f"method {method!r} trains nothing in a tree of {', '.join(params)}; "
            'expected {"backbone": ..., "prefix": ...}'
        )
    trainable = [
        leaf.astype(jnp.float32) if yes else None
        for (_, leaf), yes in zip(leaves, chosen, strict=True)
    ]
    frozen = [
        None if yes else leaf for (_, leaf), yes in zip(leaves, chosen, strict=True)
    ]
    return treedef.unflatten(trainable), treedef.unflatten(frozen)


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """The whole tree again, from the two parts of `split`; or of any tree so parted."""
    return jax.tree.map(
        lambda mine, other: other if mine is None else mine,
        trainable,
        frozen,
        is_leaf=lambda x: x is None,
    )


def folded(params: Params) -> KV | None:
    """The keys and values of the prefix in a whole tree, None where there is none."""
    return params["prefix"].fold(params["backbone"]) if "prefix" in params else None


def count(tree: Any) -> int:
    """Number of scalars in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@jax.jit
def finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number in a tree is."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _part_layers(backbone: Backbone, top: int) -> Backbone:
    """The same backbone with its top layers in a stack of their own, if there are any.

    Then their gradient is a leaf of its own, and backpropagation ends below them. What
    is trained lies in few stacks, whichever way the backbone is compiled (`unroll`), so
    that every machine can read it from a checkpoint.
    """
    layers = backbone.config.n_layer
    if not top:
        return backbone.parted(layers)
    if layers <= top:
        raise InputError(
            f"method top2 needs more than {top} layers; the backbone has {layers}"
        )
    return backbone.parted(layers - top, top)


def _name(path) -> str:
    keys = (getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path)
    return "/".join(str(key) for key in keys if key != "value")
