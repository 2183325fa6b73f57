"""GPT-2 with learned keys and values, written out in numpy: no masks, no batches.

A reference that shares no code with the package: every token of every layer and head
gathers the keys that it may look at, one after the other.
"""

import numpy as np


def logits(backbone, tokens, positions, prefix, sees, gates=None):
    """f64 logits [T V] of a text.

    `prefix`: for each layer (keys, values), each [P H K] with a P of its own; `sees`
    [T]: the tokens that look at it; `gates` [L H]: then the prefix has its own softmax,
    and what it gives is multiplied and added.
    """
    config = backbone.config
    weights = {
        name: np.asarray(leaf, np.float64)
        for name, leaf in (
            ("words", backbone.token_embedding[...]),
            ("places", backbone.position_embedding[...]),
        )
    }
    block = backbone.blocks[0]
    x = weights["words"][tokens] + weights["places"][positions]
    for layer, (keys, values) in enumerate(prefix):

        def of(parameter, layer=layer):
            return np.asarray(parameter[...][layer], np.float64)

        normal = norm(x, of(block.ln_1.scale), of(block.ln_1.bias))
        qkv = np.einsum("td,dhck->cthk", normal, of(block.qkv.kernel))
        query, key, value = qkv + of(block.qkv.bias).swapaxes(0, 1)[:, None]
        mixed = np.zeros_like(query)
        for t, head in np.ndindex(len(tokens), config.n_head):
            own = key[: t + 1, head], value[: t + 1, head]
            learned = keys[:, head], values[:, head]
            q = query[t, head] / config.head_width**0.5
            if not sees[t] or not len(keys):
                mixed[t, head] = attention(q, *own)
            elif gates is None:
                both = (np.concatenate(pair) for pair in zip(learned, own, strict=True))
                mixed[t, head] = attention(q, *both)
            else:
                mixed[t, head] = attention(q, *own)
                mixed[t, head] += gates[layer, head] * attention(q, *learned)
        x = x + np.einsum("thk,hkd->td", mixed, of(block.out.kernel))
        x = x + of(block.out.bias)
        normal = norm(x, of(block.ln_2.scale), of(block.ln_2.bias))
        inner = gelu(normal @ of(block.up.kernel) + of(block.up.bias))
        x = x + inner @ of(block.down.kernel) + of(block.down.bias)
    last = backbone.ln_f
    x = norm(x, np.asarray(last.scale[...]), np.asarray(last.bias[...]))
    return x @ weights["words"].T


def attention(query, keys, values):
    scores = keys @ query
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


def norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
