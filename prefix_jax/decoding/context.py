"""What every decoding method shares: the prompt read once, then token after token.

B prompts are each continued by G sequences (beams, or several samples). What a prompt's
sequences have in common, the prefix and the prompt, is stored once for all of them:

    prefix    [L N P H K]       N = 1 for one shared prefix, B where prompts differ
    prompt    [B H T K]         for each layer (keys [B H K T]); padded on the left
    written   [B H M*G K]       the same; slot m*G + g: the m-th new token of sequence g

The layers are not scanned, and each has caches of its own: a scan would copy a layer's
weights and cache out of the stack for every token, as much traffic as reading them. For
the same reason a token's keys and values are written before it attends to any: slots
that are read first and updated then are copied, whole, for every token.

A beam that is copied copies no keys and values: `lineage[b, g, m]` says in which
sequence's slot the m-th token of sequence g lies, and attention masks the others.
"""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.layers import Slots
from prefix_jax.model.passes import Cache, finished

SHORTEST_PART = 8
"""Tokens of each prompt that are read at a time, at least."""

FULL_PRODUCT = 1024
"""Rows of a matrix product from which on more of them make it no more efficient."""


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What new tokens are written after, for B prompts; it never changes."""

    prefix: KV | None
    prompt: list[Slots]
    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    """Real tokens of the prompts, which are padded on the left."""
    start: Int[Array, " B"]
    """Position index of the first new token."""


def unrolled(backbone: Backbone) -> Backbone:
    """The backbone with each layer for itself."""
    return backbone.parted(*[1] * backbone.config.n_layer)


def read_prompts(
    backbone: Backbone,
    prefix: KV | None,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> tuple[Context, Float[Array, "B V"]]:
    """The context of B prompts, and the logits of the first token after each.

    The backbone is unrolled; the prefix has N = 1 or N = B, and the backbone's dtype.
    Prompts are read in parts, from the first that holds a token on, so that one program
    serves all lengths up to T at little cost: an eighth of T, or more where products
    of so few rows would be slow. An infix stands before the last token of each, as
    `learning.loss` has it in a row.
    """
    rows, length = tokens.shape
    # The first new token is read off the last one of the prompt, which sees an infix.
    last = jnp.broadcast_to(jnp.arange(length) == length - 1, mask.shape)
    after = last if _is_infix(prefix) else None
    shift = 0 if prefix is None else prefix.shift(rows, after)
    positions = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0) + shift
    efficient = 1 << (max(1, FULL_PRODUCT // rows).bit_length() - 1)
    part = min(length, max(SHORTEST_PART, efficient, length // 8))
    assert length % part == 0, f"prompts are padded to {length}, not parts of {part}"

    def read(number, carry):
        prompt, _ = carry
        start = number * part

        def here(x):
            return jax.lax.dynamic_slice_in_dim(x, start, part, 1)

        own = start + jnp.arange(part)[:, None] >= jnp.arange(length)
        out = backbone.forward(
            here(tokens),
            prefix=prefix,
            caches=[Cache(prompt, mask[:, None] & own, start, positions)],
            positions=here(positions),
            after=None if after is None else here(after),
            finished=False,
        )
        return out.written, finished(out.finish, out.hidden[:, -1:])[:, 0]

    empty = empty_caches(backbone, rows, length)
    hidden = jnp.zeros((rows, backbone.config.n_embd), backbone.dtype)
    # Rows that only fill the batch may be all that a device has.
    first = jnp.where(mask.any(), jnp.argmax(mask.any(0)), length) // part
    prompt, hidden = jax.lax.fori_loop(first, length // part, read, (empty, hidden))
    start = positions[:, -1] + 1
    return Context(prefix, prompt, tokens, mask, start), backbone.logits(hidden)


def _is_infix(prefix: KV | None) -> bool:
    return prefix is not None and prefix.placement == "infix"


def empty_caches(backbone: Backbone, rows: int, slots: int) -> list[Slots]:
    """Room for the keys and values of `slots` tokens in each of `rows`, all zero."""
    heads, width = backbone.config.kv_heads, backbone.config.head_width
    keys = jnp.zeros((rows, heads, width, slots), backbone.dtype)
    values = jnp.zeros((rows, heads, slots, width), backbone.dtype)
    return [Slots(keys, values) for _ in range(backbone.config.n_layer)]


def read_token(
    backbone: Backbone,
    context: Context,
    written: list[Slots],
    lineage: Int[Array, "B G M"],
    token: Int[Array, "B G"],
    number: Int[Array, ""],
) -> tuple[list[Slots], Float[Array, "B G V"]]:
    """Read the new token `number` (from 0) of each sequence; the logits of the next.

    `lineage` tells of that token too: its sequence wrote it.
    `written` comes back with its keys and values.
    """
    rows, group = token.shape
    slots = lineage.shape[2]
    held = (jnp.arange(slots) <= number)[:, None]
    visible = (lineage[..., None] == jnp.arange(group)) & held
    visible = visible.reshape(rows * group, 1, slots * group)
    start = context.start[:, None]
    length = context.mask.shape[1]
    read = backbone.forward(
        token.reshape(rows * group, 1),
        prefix=context.prefix,
        caches=[
            Cache(
                context.prompt,
                context.mask[:, None, :],
                positions=start + jnp.arange(-length, 0),
            ),
            Cache(
                written,
                visible,
                number * group,
                positions=start + jnp.arange(slots * group) // group,
            ),
        ],
        positions=jnp.repeat(start + number, group, 0),
        after=jnp.ones((rows * group, 1), bool) if _is_infix(context.prefix) else None,
    )
    logits = backbone.logits(read.hidden[:, 0])
    return read.written, logits.reshape(rows, group, -1)
