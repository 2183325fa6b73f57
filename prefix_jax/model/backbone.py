"""A language model as the rest of the library knows it, whatever its family.

A family (`gpt2`, `llama`) adds its layers, how tokens are told their places and its
norm:

    Backbone
      token_embedding  [V D]   also the output head unless `head` is there
      blocks           list of stacks; every leaf of a stack has a leading axis of its
                       layers. One stack, or one for each layer (`unroll`), or two where
                       `split` parts the layers
      ln_f             the last norm
      head             [V D] or None (tied)
"""

import abc
from collections.abc import Sequence
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from prefix_jax.config import RematKeeps
from prefix_jax.errors import InputError
from prefix_jax.model.attention import KeyBlock, causal_mask, prefix_mask
from prefix_jax.model.flash import Texts, fits
from prefix_jax.model.kv import KV, of_rows
from prefix_jax.model.layers import Own, Slots, head_logits
from prefix_jax.model.parted import weights_are_parted
from prefix_jax.model.passes import (
    KEPT,
    Block,
    Cache,
    Finish,
    Forward,
    How,
    checked,
    stacked,
)
from prefix_jax.model.segments import segment_mask, segment_starts
from prefix_jax.model.shape import Shape
from prefix_jax.model.windows import Windows


class Backbone(nnx.Module):
    """A frozen or trained language model, a Flax module that is a plain pytree."""

    config: Shape
    dtype: jnp.dtype
    """What it computes in; parameters may have another."""
    remat: bool
    remat_keeps: RematKeeps
    unroll: bool
    fused: bool
    token_embedding: nnx.Param
    blocks: nnx.List
    head: nnx.Param | None
    ln_f: nnx.Module

    def __init__(
        self,
        config: Shape,
        layers: Block,
        *,
        key: PRNGKeyArray,
        dtype: jnp.dtype | str,
        **how: Unpack[How],
    ):
        """Around all its `layers` in one stack: random f32 embeddings, and a head."""
        self.config = config
        self.dtype = jnp.dtype(dtype)
        for name, value in checked(how).items():
            setattr(self, name, value)
        shape = config.vocab_size, config.n_embd
        deviation = config.initializer_range
        keys = self.keys(key)
        self.token_embedding = nnx.Param(deviation * jax.random.normal(keys[0], shape))
        sizes = [1] * config.n_layer if self.unroll else [config.n_layer]
        self.blocks = nnx.List(stacked([layers], sizes))
        self.head = nnx.data(
            None
            if config.tie_word_embeddings
            else nnx.Param(deviation * jax.random.normal(keys[3], shape))
        )

    @staticmethod
    def keys(key: PRNGKeyArray) -> Array:
        """For the embedding, a family's own, the layers and the head, in this order."""
        return jax.random.split(key, 4)

    @abc.abstractmethod
    def at_positions(
        self, x: Float[Array, "B T D"], positions: Int[Array, "#B T"]
    ) -> tuple[Float[Array, "B T D"], PyTree]:
        """Embedded tokens as the first layer reads them, and what each layer is told of
        their positions."""

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        prefix: KV | None = None,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        prefix_ids: Int[Array, " rows"] | None = None,
        after: Bool[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """f32 logits of the next token; arguments as in `hidden_states`."""
        return self.logits(
            self.hidden_states(
                tokens, prefix, mask, positions, prefix_ids, after, segments
            )
        )

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        prefix: KV | None = None,
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        prefix_ids: Int[Array, " rows"] | None = None,
        after: Bool[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """What the logits are made of; arguments as in `forward`.

        `prefix_ids` names for each row its prefix in the bank `prefix`; without them
        there is one prefix for all rows, or one for each. Raises InputError too where
        their numbers differ.
        """
        return self.forward(
            tokens,
            prefix=of_rows(prefix, prefix_ids, len(tokens)),
            mask=mask,
            positions=positions,
            after=after,
            segments=segments,
        ).hidden

    def forward(
        self,
        tokens: Int[Array, "B T"] | Float[Array, "B T D"],
        *,
        prefix: KV | None = None,
        caches: Sequence[Cache] = (),
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        collect: bool = False,
        observe: bool = False,
        after: Bool[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        finished: bool = True,
    ) -> Forward:
        """The layers over `tokens`, which see the prefix, the caches and each other.

        Tokens are ids or embeddings [B T D], which stand for what ids would look up.
        `mask` marks the real tokens (None: all); the prefix is always seen, and where
        it holds N < B of them, B/N neighbouring rows share each. `positions`
        None count on from the prefix, which is only for text without a cache before it.
        Given ones are not checked, which a compiled program cannot: a learned table
        gives its last row for those out of range.
        `collect` returns the tokens' own keys and values; `observe` the
        attention that they pay to a prefix that shares their softmax. `after` marks
        the tokens that come after an infix, which alone see it; for an infix only.
        `segments` says which of the texts packed into its row each token belongs to,
        numbered from 1 on (0: padding), in place of `mask`: every text sees the prefix
        and itself and counts its own positions. Rows may exceed the table, a text may
        not, which is the caller's to check (as for given positions).
        Not `finished`, it may leave to the caller what the result's `finish` does to
        hidden states: who reads those of a few tokens only calls it on them.
        Raises InputError where the positions are more than the backbone has, and
        ValueError for arguments that contradict each other.
        """
        rows, length = tokens.shape[:2]
        if prefix is not None:
            prefix.check_fit(self.config, rows, after)
        if segments is not None and (caches or mask is not None):
            raise ValueError("segments take the place of mask, and read no cache")
        if positions is None:
            if caches:
                raise ValueError("after a cache, positions must be given")
            positions = self._positions(prefix, rows, length, after, segments)
        if caches and (set(self.stack_sizes) != {1} or collect or observe):
            raise ValueError("caches are for a plain pass through unrolled layers")
        if mask is not None and any(cache.start is not None for cache in caches):
            raise ValueError("of tokens that go to a cache, its own mask tells")
        texts = own_mask = None
        plain = mask is None and not (caches or observe or collect)
        if plain and self._fuses(prefix, after, length):
            texts = Texts.of(rows, length, segments)
        elif segments is None:
            own_mask = causal_mask(length, mask)
        else:
            own_mask = segment_mask(segments)
        prefix_layers = None
        if prefix is not None:
            row_gradients = None
            if texts is None:
                prefix = prefix.cast(self.dtype, rows)
            elif prefix.number == 1:
                # Kernels round it and read it where it lies. The rows' gradients are
                # summed behind the layers: devices send one sum, not one a layer.
                row_gradients = prefix.broadcast(rows)
            prefix_layers = prefix.keys, prefix.values, prefix.mask, row_gradients

        with jax.named_scope("embed"):
            x = self.token_embedding[...][tokens] if tokens.ndim == 2 else tokens
            if texts is not None:
                more = 0, texts.padded - length
                x = jnp.pad(x, [(0, 0), more, (0, 0)])
                positions = jnp.pad(positions, [(0, 0), more])
            x, places = self.at_positions(x.astype(self.dtype), positions)
        windows = None
        if self.config.windows is not None:
            windows = Windows(self.config.windows, positions)

        def layer(x, inputs, slots=(), *, mlp=True):
            block, index, prefix_layer = inputs

            def near(mask, keys_at):
                return mask if windows is None else windows.within(index, mask, keys_at)

            seen, own = [], Own(near(own_mask, positions), texts=texts)
            if prefix is not None:
                keys, values, real, row_gradients = prefix_layer
                visible = prefix_mask(real, after, prefix.length)
                visible = near(visible, prefix.positions)
                seen.append(
                    KeyBlock.of(
                        keys, values, visible, prefix.own_softmax, row_gradients
                    )
                )
            for cache, held in zip(caches, slots, strict=True):
                slots_seen = near(cache.mask, cache.positions)
                if cache.start is None:
                    seen.append(KeyBlock(held.keys, held.values, slots_seen))
                else:
                    own = Own(slots_seen, held, cache.start)
            observing = observe and prefix is not None and not prefix.own_softmax
            x, own_block, share = block.attend(x, seen, own, index, places, observing)
            if mlp:
                x = x + block.mlp(x)
            keep = collect or slots
            own_kv = Slots(own_block.keys, own_block.values) if keep else None
            return x, (own_kv, share)

        finish = None if finished else self._finish()
        last = layer if finish is None else partial(layer, mlp=False)
        if self.remat:
            keep = partial(jax.checkpoint, policy=KEPT[self.remat_keeps])
            layer, last = keep(layer), keep(last)
        start, written, gathered = 0, [], []
        for number, (stack, size) in enumerate(
            zip(self.blocks, self.stack_sizes, strict=True)
        ):
            stop = start + size
            run = last if stop == self.config.n_layer else layer
            inputs = (
                stack,
                jnp.arange(start, stop),
                jax.tree.map(lambda x, a=start, b=stop: x[a:b], prefix_layers),
            )
            if caches:
                # A scan would copy the slots.
                alone = jax.tree.map(lambda x: x[0], inputs)
                slots = [cache.layers[number] for cache in caches]
                x, (own, _) = run(x, alone, slots)
                written.append(own)
            else:
                unroll = size if self.unroll else 1
                x, kept = jax.lax.scan(run, x, inputs, unroll=unroll)
                gathered.append(kept)
            start = stop
        hidden = self.ln_f(x[:, :length]) if finish is None else x[:, :length]
        kv = share = None
        if gathered:
            own, share = jax.tree.map(lambda *x: jnp.concatenate(x), *gathered)
            if own is not None:
                kv = KV(own.keys.transpose(0, 1, 4, 2, 3), own.values.swapaxes(2, 3))
        return Forward(hidden, kv, written, share, finish)

    def _finish(self) -> Finish | None:
        # Out of a longer stack its last layer would be copied, and of weights that are
        # parted, each use in the caller's loop would gather them.
        if self.stack_sizes[-1] > 1 or weights_are_parted():
            return None
        return Finish(jax.tree.map(lambda x: x[0], self.blocks[-1].mlp), self.ln_f)

    @property
    def stack_sizes(self) -> tuple[int, ...]:
        """Layers of each stack."""
        return tuple(len(jax.tree.leaves(stack)[0]) for stack in self.blocks)

    def parted(self, *sizes: int) -> "Backbone":
        """The same layers in stacks of these sizes, each scanned for itself."""
        if sizes == self.stack_sizes:
            return self
        assert sum(sizes) == self.config.n_layer, sizes
        parted = jax.tree.map(lambda x: x, self)  # a copy that shares the leaves
        parted.blocks = nnx.List(stacked(self.blocks, sizes))
        return parted

    @property
    def output_head(self) -> Float[Array, "V D"]:
        """The matrix from hidden states to logits: the token embedding if tied."""
        return (self.token_embedding if self.head is None else self.head)[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """f32 logits of hidden states."""
        with jax.named_scope("head"):
            return head_logits(hidden, self.output_head)

    def _fuses(self, prefix: KV | None, after: Array | None, length: int) -> bool:
        """Whether fused attention computes what this prefix asks for, and pays.

        Of short texts the padding, for which all of a layer is computed, would be more
        than an eighth.
        """
        if 8 * Texts.whole(length) > 9 * length:
            return False
        all_see_all = after is None and (
            prefix is None or (prefix.mask is None and not prefix.own_softmax)
        )
        config = self.config
        alike = config.scales_alike and config.windows is None
        return (
            self.fused and fits(self.dtype, config.head_width) and alike and all_see_all
        )

    def _positions(self, prefix, rows, length, after, segments):
        shift = 0 if prefix is None else prefix.shift(rows, after)
        offset = 0 if prefix is None else prefix.position_offset
        limit = self.config.n_positions
        if segments is not None:
            if offset >= limit:
                raise InputError(
                    f"the prefix takes {offset} of the backbone's {limit} positions, "
                    "which leaves none for text; give a shorter one"
                )
            return jnp.arange(length) - segment_starts(segments) + shift
        if offset + length > limit:
            raise InputError(
                f"prefix {offset} + {length} tokens = {offset + length} positions; the "
                f"backbone has {limit}; shorten the text to {max(limit - offset, 0)} "
                "tokens"
            )
        return jnp.arange(length)[None] + shift
