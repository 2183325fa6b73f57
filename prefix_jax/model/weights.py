"""Our parameter tree and Hugging Face's tensors: the mapping, both ways.

A stack's leaf holds all its layers, and in each of them what several tensors of the
file may; which, and how they lie there, a family tells leaf by leaf (`Names`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.families import family_of, random_backbone
from prefix_jax.model.naming import HEAD, Names, Part
from prefix_jax.model.passes import How
from prefix_jax.model.shape import Shape
from prefix_jax.model.tensor_files import FLOATS, Stored, save_tensors


class Origin(NamedTuple):
    """Where tensors come from, in the words of messages about them."""

    place: str | Path
    described: str = "in its config.json"
    """Where the model is that they are to fit."""
    called: Callable[[str], str] = str
    """What a tensor, by Hugging Face's name, is called there."""


class _Leaf(NamedTuple):
    """The tensors that make up one leaf of the tree: one part a layer, or one."""

    parts: list[Part]
    shape: tuple[int, ...]
    """Of each part."""


def save_backbone(folder: str | Path, backbone: Backbone) -> None:
    """Write `config.json` and `model.safetensors`, as transformers reads them.

    The tokenizer is not of it: `tokenizer.save_pretrained(folder)` puts it beside them.
    Parameters keep their types. Raises InputError if `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file; give a folder to write the backbone in")
    folder.mkdir(parents=True, exist_ok=True)
    family = family_of(backbone.config)
    tensors = {
        name if name == HEAD else f"{family.names.base}{name}": tensor
        for name, tensor in _tensors(backbone).items()
    }
    save_tensors(tensors, folder / "model.safetensors")
    values = {
        "architectures": [backbone.config.architecture],
        "torch_dtype": str(backbone.token_embedding.dtype),
        **backbone.config.fields(),
    }
    text = json.dumps(values, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def fingerprint(backbone: Backbone) -> str:
    """16 hexadecimal digits that name a backbone.

    Backbones of the same digits compute the same. (Not so the other way round: a Llama
    and a Mistral without windows differ by name.) SHA-256 over the configuration, as
    far as it may change the logits, and the weights rounded to bf16, tensor by tensor
    in Hugging Face's naming. So the f32 and the bf16 copy of a backbone agree, and so
    do its layers in one stack or in two; a change too small for bf16 goes unseen.
    """
    variant = backbone.config.variant()
    digest = hashlib.sha256(json.dumps(variant, sort_keys=True).encode())
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), backbone)
    for name, tensor in sorted(_tensors(rounded).items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor).view(np.uint8).data)
    return digest.hexdigest()[:16]


def fill(
    config: Shape,
    stored: Mapping[str, Stored],
    *,
    origin: Origin,
    dtype: str,
    **how: Unpack[How],
) -> Backbone:
    """The backbone of these stored tensors, its parameters in `dtype`.

    One leaf at a time passes through host memory. Raises InputError that names the
    missing, extra and unfit tensors of `origin`, or one that is not finite.
    """
    family = family_of(config)
    shapes = jax.eval_shape(
        lambda key: random_backbone(config, key=key, dtype=dtype, **how),
        jax.random.key(0),
    )
    layout = _layout(shapes)
    stored = _recognise(layout, stored, family.names, origin=origin)
    leaves, treedef = jax.tree.flatten(shapes)
    filled = []
    for leaf, target in zip(layout, leaves, strict=True):
        array = np.empty((len(leaf.parts), *leaf.shape), shapes.dtype)
        for row, part in zip(range(len(array)), leaf.parts, strict=True):
            with np.errstate(over="ignore"):  # what is not finite is refused next
                array[row] = part.read([stored[name].read() for name in part.tensors])
            _check_finite(np.asarray(array[row]), part, origin)
        filled.append(jnp.array(array.reshape(target.shape)))
    return treedef.unflatten(filled)


def _check_finite(array: Float[np.ndarray, "..."], part: Part, origin: Origin) -> None:
    """InputError for what a damaged file, or training that diverged, leaves."""
    finite = np.isfinite(array)
    if not finite.all():
        names = ", ".join(map(origin.called, part.tensors))
        raise InputError(
            f"{array.size - int(finite.sum())} of {array.size} numbers of {names} in "
            f"{origin.place} are NaN or infinite in {array.dtype}: the file is "
            "damaged, or its training diverged; get it again, or train at a lower rate"
        )


def _layout(backbone: Backbone) -> list[_Leaf]:
    """What each leaf of the tree is called in the file, in the tree's order."""
    sizes = backbone.stack_sizes
    names = family_of(backbone.config).names

    def describe(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        path = path.removesuffix("/value")
        if not path.startswith("blocks/"):
            return _Leaf([names.part(path, leaf.shape)], leaf.shape)
        _, stack, path = path.split("/", 2)
        first, shape = sum(sizes[: int(stack)]), leaf.shape[1:]
        layers = range(first, first + len(leaf))
        return _Leaf([names.part(path, shape, layer) for layer in layers], shape)

    paths, _ = jax.tree_util.tree_flatten_with_path(backbone)
    return [describe(path, leaf) for path, leaf in paths]


def _tensors(backbone: Backbone) -> dict[str, Float[np.ndarray, "..."]]:
    """The parameters under Hugging Face's names and in its shapes."""
    tensors = {}
    for leaf, value in zip(_layout(backbone), jax.tree.leaves(backbone), strict=True):
        arrays = np.asarray(value).reshape(len(leaf.parts), *leaf.shape)
        for part, array in zip(leaf.parts, arrays, strict=True):
            written = part.write(np.asarray(array))
            tensors.update(zip(part.tensors, written, strict=True))
    return tensors


def _recognise(
    layout: list[_Leaf],
    stored: Mapping[str, Stored],
    names: Names,
    *,
    origin: Origin,
) -> dict[str, Stored]:
    """`stored` under bare names, or an InputError about what does not fit."""
    expected = {
        name: shape
        for leaf in layout
        for part in leaf.parts
        for name, shape in part.tensors.items()
    }
    found, problems = {}, []
    for name, tensor in stored.items():
        bare = name.removeprefix(names.base)
        if bare in found:
            problems.append(f"{bare}: there twice, with and without {names.base}")
        elif not names.buffers.fullmatch(bare):
            found[bare] = tensor

    # A tied head may be stored too, or stored in place of the embedding.
    if HEAD not in expected and (head := found.pop(HEAD, None)) is not None:
        embedding = found.setdefault(names.embedding, head)
        if embedding is not head and not (
            embedding.shape == head.shape
            and np.array_equal(embedding.read(), head.read())
        ):
            problems.append(
                f"{HEAD}: differs from {names.embedding} although config.json ties "
                'them; set "tie_word_embeddings": false there to keep it'
            )

    called = origin.called
    for name, shape in expected.items():
        if name not in found:
            problems.append(f"{called(name)}: missing, expected {list(shape)}")
        elif found[name].shape != shape:
            given = list(found[name].shape)
            problems.append(f"{called(name)}: found {given}, expected {list(shape)}")
        elif found[name].dtype not in FLOATS:
            given, wanted = found[name].dtype, ", ".join(FLOATS)
            problems.append(f"{called(name)}: found {given}, expected {wanted}")
    for name in found.keys() - expected.keys():
        given = list(found[name].shape)
        problems.append(f"{called(name)}: unexpected, found {given}")
    if problems:
        shown = problems[:8]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise InputError(
            f"the tensors in {origin.place} are not those of the model "
            f"{origin.described}:" + "".join(f"\n  {problem}" for problem in shown)
        )
    return found
