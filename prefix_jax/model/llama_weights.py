"""The Llama family's tensors in Hugging Face's files.

Matrices lie there as [outputs inputs]; those of queries, keys and values are apart, and
so are gate and up:

    blocks/0/qkv/kernel      [L D H/J J+2 K]  self_attn.q_proj.weight  [H*K D]
                                              self_attn.k_proj.weight  [H/J*K D]
                                              self_attn.v_proj.weight  [H/J*K D]
    blocks/0/out/kernel      [L H K D]        self_attn.o_proj.weight  [D H*K]
    blocks/0/gate_up/kernel  [L D 2 F]        mlp.gate_proj.weight     [F D]
                                              mlp.up_proj.weight       [F D]
"""

import math
import re

import numpy as np

from prefix_jax.model.naming import HEAD, Names, Part, same

_NAMES = {
    "token_embedding": "embed_tokens.weight",
    "ln_f/scale": "norm.weight",
    "head": HEAD,
    "ln_1/scale": "input_layernorm.weight",
    "q_norm/scale": "self_attn.q_norm.weight",
    "k_norm/scale": "self_attn.k_norm.weight",
    "out/bias": "self_attn.o_proj.bias",
    "ln_2/scale": "post_attention_layernorm.weight",
    "down/bias": "mlp.down_proj.bias",
}
_MATRICES = {"out/kernel": "self_attn.o_proj", "down/kernel": "mlp.down_proj"}
_QKV = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
_GATE_UP = "mlp.gate_proj", "mlp.up_proj"


def _described(path: str, shape: tuple[int, ...]) -> Part:
    if name := _NAMES.get(path):
        return same(name, shape)
    module, _, kind = path.partition("/")
    suffix = {"kernel": "weight", "bias": "bias"}[kind]
    if module == "qkv":
        *rows, heads, slots, width = shape
        sizes = [heads * (slots - 2) * width, heads * width, heads * width]
        names = [f"{name}.{suffix}" for name in _QKV]

        def split(part):
            return np.split(part, [slots - 2, slots - 1], axis=-2)

        def join(tensors):
            return np.concatenate(
                [x.reshape(*rows, heads, -1, width) for x in tensors], axis=-2
            )

        return _columns(names, sizes, rows, split, join)
    if module == "gate_up":
        *rows, _, width = shape
        names = [f"{name}.{suffix}" for name in _GATE_UP]

        def split(part):
            return np.split(part, 2, axis=-2)

        def join(tensors):
            return np.stack(tensors, axis=-2)

        return _columns(names, [width, width], rows, split, join)
    inputs = math.prod(shape[:-1])

    def whole(part):
        return [part]

    def alone(tensors):
        return tensors[0].reshape(shape)

    return _columns(
        [f"{_MATRICES[path]}.{suffix}"], [shape[-1]], [inputs], whole, alone
    )


def _columns(names, sizes, rows, split, join) -> Part:
    """Tensors of so many outputs each, in the files before the inputs (`rows`)."""
    tensors = {name: (size, *rows) for name, size in zip(names, sizes, strict=True)}

    def read(stored):
        return join([x.T for x in stored])

    def write(part):
        return [
            np.ascontiguousarray(x.reshape(*rows, size).T)
            for x, size in zip(split(part), sizes, strict=True)
        ]

    return Part(tensors, read, write)


# Buffers: speeds of rotation that transformers before 4.35 stored among the weights.
NAMES = Names(
    base="model.",
    embedding="embed_tokens.weight",
    layer="layers.{}.",
    described=_described,
    buffers=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)
