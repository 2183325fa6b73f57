"""GPT-2's tensors in Hugging Face's files.

They are flattened to what its `Conv1D` expects, with queries, keys and values of all
heads side by side where we have each head's three (so that heads can be dealt out to
devices):

    blocks/0/qkv/kernel  [L D H 3 K]   h.{i}.attn.c_attn.weight  [D 3*H*K]
    blocks/0/qkv/bias    [L H 3 K]     h.{i}.attn.c_attn.bias    [3*H*K]
    blocks/0/out/kernel  [L H K D]     h.{i}.attn.c_proj.weight  [H*K D]
"""

import math
import re

from prefix_jax.model.naming import HEAD, Names, Part, reshaped, same

_NAMES = {
    "token_embedding": "wte.weight",
    "position_embedding": "wpe.weight",
    "ln_f/scale": "ln_f.weight",
    "ln_f/bias": "ln_f.bias",
    "head": HEAD,
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


def _described(path: str, shape: tuple[int, ...]) -> Part:
    name = _NAMES[path]
    if path == "out/kernel":
        return reshaped(name, (math.prod(shape[:-1]), shape[-1]), shape)
    if path not in ("qkv/kernel", "qkv/bias"):
        return same(name, shape)
    *rows, heads, three, width = shape
    stored = *rows, three * heads * width

    def read(tensors):
        return tensors[0].reshape(*rows, three, heads, width).swapaxes(-3, -2)

    def write(part):
        return [part.swapaxes(-3, -2).reshape(stored)]

    return Part({name: stored}, read, write)


# Buffers: causal masks that transformers before 4.26 stored among the weights.
NAMES = Names(
    base="transformer.",
    embedding="wte.weight",
    layer="h.{}.",
    described=_described,
    buffers=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
)
