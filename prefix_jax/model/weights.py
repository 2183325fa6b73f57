"""Our parameter tree and Hugging Face's tensors: the mapping, both ways.

A stack's leaf holds all its layers; the file has one tensor a layer, flattened to what
GPT-2's `Conv1D` expects, with queries, keys and values of all heads side by side where
we have each head's three (so that heads can be dealt out to devices):

    blocks/0/qkv/kernel  [L D H 3 K]   h.{i}.attn.c_attn.weight  [D 3*H*K]
    blocks/0/qkv/bias    [L H 3 K]     h.{i}.attn.c_attn.bias    [3*H*K]
    blocks/0/out/kernel  [L H K D]     h.{i}.attn.c_proj.weight  [H*K D]
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.tensor_files import FLOATS, Stored, save_tensors

# Hugging Face's names without the prefix `transformer.`, which only the head lacks.
_TOP = {
    "token_embedding": "wte.weight",
    "position_embedding": "wpe.weight",
    "ln_f/scale": "ln_f.weight",
    "ln_f/bias": "ln_f.bias",
    "head": "lm_head.weight",
}
_LAYER = {
    "ln_1/scale": "ln_1.weight",
    "ln_1/bias": "ln_1.bias",
    "qkv/kernel": "attn.c_attn.weight",
    "qkv/bias": "attn.c_attn.bias",
    "out/kernel": "attn.c_proj.weight",
    "out/bias": "attn.c_proj.bias",
    "ln_2/scale": "ln_2.weight",
    "ln_2/bias": "ln_2.bias",
    "up/kernel": "mlp.c_fc.weight",
    "up/bias": "mlp.c_fc.bias",
    "down/kernel": "mlp.c_proj.weight",
    "down/bias": "mlp.c_proj.bias",
    "act/weight": "mlp.act.weight",
    "act/alpha_p": "mlp.act.alpha_p",
    "act/alpha_n": "mlp.act.alpha_n",
    "act/beta": "mlp.act.beta",
    "act/eps": "mlp.act.eps",
}
# Causal masks that transformers before 4.26 stored among the weights.
_OLD_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


class _Leaf(NamedTuple):
    """The tensors that make up one leaf of the tree: one a layer, or one."""

    names: list[str]
    shape: tuple[int, ...]
    """Of each tensor in the file."""
    part: tuple[int, ...]
    """Of the same numbers in our leaf."""
    heads_first: bool = False
    """Whether heads stand before the three of each, not after them as in the file."""

    def read(self, tensor: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """A tensor of the file as the leaf has it."""
        if not self.heads_first:
            return tensor.reshape(self.part)
        *dims, heads, three, width = self.part
        return tensor.reshape(*dims, three, heads, width).swapaxes(-3, -2)

    def write(self, part: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """One layer's part of the leaf as the file has it."""
        if self.heads_first:
            part = part.swapaxes(-3, -2)
        return part.reshape(self.shape)


def save_backbone(folder: str | Path, backbone: Backbone) -> None:
    """Write `config.json` and `model.safetensors`, as transformers' GPT-2 reads them.

    Parameters keep their types. Raises InputError if `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file; give a folder to write the backbone in")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name if name == "lm_head.weight" else f"transformer.{name}": tensor
        for name, tensor in _tensors(backbone).items()
    }
    save_tensors(tensors, folder / "model.safetensors")
    values = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "torch_dtype": str(backbone.token_embedding.dtype),
        **backbone.config.fields(),
    }
    text = json.dumps(values, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def fingerprint(backbone: Backbone) -> str:
    """16 hexadecimal digits that name the function a backbone computes.

    SHA-256 over the configuration (as far as it changes the logits) and the weights
    rounded to bf16, tensor by tensor in Hugging Face's naming. So the f32 and the bf16
    copy of a backbone agree, and so do its layers in one stack or in two; a change too
    small for bf16 goes unseen.
    """
    variant = backbone.config.variant()
    digest = hashlib.sha256(json.dumps(variant, sort_keys=True).encode())
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), backbone)
    for name, tensor in sorted(_tensors(rounded).items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor).view(np.uint8).data)
    return digest.hexdigest()[:16]


def fill(
    config: GPT2Config,
    stored: Mapping[str, Stored],
    *,
    origin: str | Path,
    dtype: str,
    remat: bool = False,
    unroll: bool = False,
    fused: bool = False,
) -> GPT2:
    """The backbone of these stored tensors, its parameters in `dtype`.

    One leaf at a time passes through host memory. Raises InputError that names the
    missing, extra and unfit tensors of `origin`.
    """
    shapes = jax.eval_shape(
        lambda key: GPT2(
            config, key=key, dtype=dtype, remat=remat, unroll=unroll, fused=fused
        ),
        jax.random.key(0),
    )
    layout = _layout(shapes)
    stored = _recognise(layout, stored, origin=origin)
    leaves, treedef = jax.tree.flatten(shapes)
    filled = []
    for leaf, target in zip(layout, leaves, strict=True):
        array = np.empty((len(leaf.names), *leaf.part), jnp.dtype(dtype))
        for row, name in zip(range(len(array)), leaf.names, strict=True):
            array[row] = leaf.read(stored[name].read())
        filled.append(jnp.array(array.reshape(target.shape)))
    return treedef.unflatten(filled)


def _layout(backbone: Backbone) -> list[_Leaf]:
    """What each leaf of the tree is called in the file, in the tree's order."""
    starts, start = [], 0
    for stack in backbone.blocks:
        starts.append(start)
        start += stack.ln_1.scale.shape[0]

    def describe(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        path = path.removesuffix("/value")
        if not path.startswith("blocks/"):
            return _Leaf([_TOP[path]], leaf.shape, leaf.shape)
        _, stack, name = path.split("/", 2)
        layers, *part = leaf.shape
        dims = part
        match name:
            case "qkv/kernel":
                dims = [part[0], math.prod(part[1:])]
            case "out/kernel":
                dims = [math.prod(part[:-1]), part[-1]]
            case "qkv/bias":
                dims = [math.prod(part)]
        first = starts[int(stack)]
        names = [f"h.{i}.{_LAYER[name]}" for i in range(first, first + layers)]
        return _Leaf(names, tuple(dims), tuple(part), name.startswith("qkv/"))

    paths, _ = jax.tree_util.tree_flatten_with_path(backbone)
    return [describe(path, leaf) for path, leaf in paths]


def _tensors(backbone: Backbone) -> dict[str, Float[np.ndarray, "..."]]:
    """The parameters under Hugging Face's names and in its shapes."""
    tensors = {}
    for leaf, value in zip(_layout(backbone), jax.tree.leaves(backbone), strict=True):
        parts = np.asarray(value).reshape(len(leaf.names), *leaf.part)
        written = (leaf.write(np.asarray(part)) for part in parts)
        tensors.update(zip(leaf.names, written, strict=True))
    return tensors


def _recognise(
    layout: list[_Leaf], stored: Mapping[str, Stored], *, origin: str | Path
) -> dict[str, Stored]:
    """`stored` under bare names, or an InputError about what does not fit."""
    expected = {name: leaf.shape for leaf in layout for name in leaf.names}
    found, problems = {}, []
    for name, tensor in stored.items():
        bare = name.removeprefix("transformer.")
        if bare in found:
            problems.append(f"{bare}: there twice, with and without transformer.")
        elif not _OLD_BUFFER.fullmatch(bare):
            found[bare] = tensor

    # A tied head may be stored too, or stored in place of the embedding.
    tied = "lm_head.weight" not in expected
    if tied and (head := found.pop("lm_head.weight", None)) is not None:
        embedding = found.setdefault("wte.weight", head)
        if embedding is not head and not (
            embedding.shape == head.shape
            and np.array_equal(embedding.read(), head.read())
        ):
            problems.append(
                "lm_head.weight: differs from wte.weight although config.json ties "
                'them; set "tie_word_embeddings": false there to keep it'
            )

    for name, shape in expected.items():
        if name not in found:
            problems.append(f"{name}: missing, expected {list(shape)}")
        elif found[name].shape != shape:
            given = list(found[name].shape)
            problems.append(f"{name}: found {given}, expected {list(shape)}")
        elif found[name].dtype not in FLOATS:
            wanted = ", ".join(FLOATS)
            problems.append(f"{name}: found {found[name].dtype}, expected {wanted}")
    for name in found.keys() - expected.keys():
        given = list(found[name].shape)
        problems.append(f"{name}: unexpected, found {given}")
    if problems:
        shown = problems[:8]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise InputError(
            f"the tensors in {origin} are not those of the GPT-2 in its config.json:"
            + "".join(f"\n  {problem}" for problem in shown)
        )
    return found
