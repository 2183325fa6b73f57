"""Keys and values: the one type of a prefix, of a bank of prefixes and of a cache."""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefix_jax.config import PositionMode


# JAX also fills pytrees with things that are not arrays (shapes, None, flags).
@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KV:
    """Keys and values of S positions in every layer, as attention sees them.

    N is 1 (one prefix, shared by all rows of a batch, never copied per row) or B (one
    per row: a decode cache, or prefixes that differ). `position_mode` says where the
    text after a prefix starts to count: at S (`shifted`, Hugging Face's rule) or at 0.
    """

    keys: Float[Array, "L N S H K"]
    values: Float[Array, "L N S H K"]
    position_mode: PositionMode = dataclasses.field(
        default="shifted", metadata={"static": True}
    )

    @property
    def length(self) -> int:
        """Number of positions S."""
        return self.keys.shape[2]

    @property
    def position_offset(self) -> int:
        """Position index of the first token of text that follows."""
        return self.length if self.position_mode == "shifted" else 0

    def cast(self, dtype: jnp.dtype, rows: int) -> "KV":
        """The same keys and values in `dtype`, for a batch of `rows`.

        A cast from f32 to a narrower type broadcasts to the rows first: the gradient of
        each row is then converted to f32 before the rows are summed (and all-reduced
        over devices); the other order would sum and all-reduce in bf16.
        """
        if self.keys.dtype == dtype:
            return self

        def convert(x):
            shape = (x.shape[0], rows, *x.shape[2:])
            return jnp.broadcast_to(x, shape).astype(dtype)

        return dataclasses.replace(
            self, keys=convert(self.keys), values=convert(self.values)
        )

    def layers(self, start: int, stop: int) -> "KV":
        """The keys and values of layers start to stop - 1."""
        if (start, stop) == (0, self.keys.shape[0]):
            return self
        return dataclasses.replace(
            self, keys=self.keys[start:stop], values=self.values[start:stop]
        )


def empty_cache(
    layers: int, rows: int, length: int, heads: int, width: int, dtype: jnp.dtype
) -> KV:
    """A decode cache of `length` slots, all zero, nothing written yet."""
    shape = (layers, rows, length, heads, width)
    return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
