"""Keys and values: the one type of a prefix, of a bank of prefixes and of a cache."""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefix_jax.prefix_config import PositionMode


# JAX also fills pytrees with things that are not arrays (shapes, None, flags).
@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KV:
    """Keys and values of S positions in every layer, as attention sees them.

    N is 1 (one prefix, shared by all rows of a batch and never copied per row), B (one
    per row), or the size of a bank whose rows are chosen by `select`. A batch of B rows
    also accepts N that divides B: then B/N neighbouring rows share each one.
    `position_mode` says where the text after a prefix starts to count: after the
    prefix (`shifted`, Hugging Face's rule) or at 0.
    """

    keys: Float[Array, "L N S H K"]
    values: Float[Array, "L N S H K"]
    position_mode: PositionMode = dataclasses.field(
        default="shifted", metadata={"static": True}
    )
    lengths: Int[Array, " N"] | None = None
    """Real positions of each of the N, at the front; None: all S are real."""

    @property
    def pair(self) -> tuple[Float[Array, "L N S H K"], Float[Array, "L N S H K"]]:
        """Keys and values."""
        return self.keys, self.values

    @property
    def number(self) -> int:
        """How many prefixes, N."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """Number of positions S, that of the longest where they differ."""
        return self.keys.shape[2]

    @property
    def position_offset(self) -> int:
        """Largest position index at which text that follows may start."""
        return self.length if self.position_mode == "shifted" else 0

    @property
    def offsets(self) -> Int[Array, "#N"]:
        """Position index of the first token of text after each of the N."""
        if self.lengths is None or self.position_mode != "shifted":
            return jnp.full(1, self.position_offset, jnp.int32)
        return self.lengths

    @property
    def mask(self) -> jax.Array | None:
        """Which positions are real, bool [N 1 S]; None: all."""
        if self.lengths is None:
            return None
        return jnp.arange(self.length) < self.lengths[:, None, None]

    def select(self, ids: Int[Array, " B"]) -> "KV":
        """The bank's prefixes `ids`, one per row: N = B.

        An id that the bank does not have gives NaN keys, hence NaN logits: inside a
        compiled program there is no other way to refuse it.
        """

        def take(x, axis):
            known = (ids >= 0) & (ids < x.shape[axis])
            fill = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
            index = jnp.where(known, ids, x.shape[axis])
            return jnp.take(x, index, axis=axis, mode="fill", fill_value=fill)

        lengths = self.lengths
        return dataclasses.replace(
            self,
            keys=take(self.keys, 1),
            values=take(self.values, 1),
            lengths=None if lengths is None else take(lengths, 0),
        )

    def cast(self, dtype: jnp.dtype, rows: int) -> "KV":
        """The same keys and values in `dtype`, for a batch of `rows`.

        A cast of a shared prefix from f32 to a narrower type broadcasts to the rows
        first: the gradient of each row is then converted to f32 before the rows are
        summed (and all-reduced over devices); the other order would sum and all-reduce
        in bf16.
        """
        if self.keys.dtype == dtype:
            return self

        def convert(x):
            if x.shape[1] == 1:
                x = jnp.broadcast_to(x, (x.shape[0], rows, *x.shape[2:]))
            return x.astype(dtype)

        lengths = self.lengths
        if lengths is not None and lengths.shape[0] == 1:
            lengths = jnp.broadcast_to(lengths, (rows,))
        return dataclasses.replace(
            self,
            keys=convert(self.keys),
            values=convert(self.values),
            lengths=lengths,
        )

    def layers(self, start: int, stop: int) -> "KV":
        """The keys and values of layers start to stop - 1."""
        if (start, stop) == (0, self.keys.shape[0]):
            return self
        return dataclasses.replace(
            self, keys=self.keys[start:stop], values=self.values[start:stop]
        )
