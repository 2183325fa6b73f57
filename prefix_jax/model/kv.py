"""Keys and values: the one type of a prefix and of a bank of prefixes."""

import dataclasses
from collections.abc import Sequence
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Int32

from prefix_jax.errors import InputError
from prefix_jax.model.shape import Shape
from prefix_jax.prefix_config import Placement, PositionMode


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
    lengths: Int[Array, "L N"] | None = None
    """Real positions of each of the N in each layer, at the front; None: all S are."""
    placement: Placement = dataclasses.field(
        default="prefix", metadata={"static": True}
    )
    """`infix`: it stands inside the text, and only what comes after it sees it."""
    own_softmax: bool = dataclasses.field(default=False, metadata={"static": True})
    """The text attends to it by a softmax of its own, and the result is added: a gated
    prefix, whose gates are folded into its values (LLaMA-Adapter)."""

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
        """How many positions each of the N shifts the text after it by.

        As many as the layer that has the most: tokens have one position for all layers.
        """
        if self.lengths is None or self.position_mode != "shifted":
            return jnp.full(1, self.position_offset, jnp.int32)
        return self.lengths.max(0)

    @property
    def positions(self) -> Int[Array, "#N S"]:
        """Those that a window counts: the last real one is before the text's first."""
        real = jnp.full(1, self.length)
        if self.lengths is not None:
            real = self.lengths.max(0)
        return jnp.arange(self.length) - (real - self.offsets)[:, None]

    @property
    def mask(self) -> Bool[Array, "L N 1 S"] | None:
        """Which positions are real; None: all."""
        if self.lengths is None:
            return None
        return jnp.arange(self.length) < self.lengths[:, :, None, None]

    def shift(
        self, rows: int, after: Bool[Array, "rows T"] | None
    ) -> Int[Array, "#rows #T"]:
        """How many positions it moves each token of a text in so many rows by.

        Before a prefix there is no text: all of it starts after it. An infix has the
        source before it, which counts from 0, and moves only what is `after` it (Li &
        Liang's code continues a cache of source and infix).
        """
        offsets = self.offsets[:, None]
        if len(offsets) > 1:
            offsets = offsets.repeat(rows // len(offsets), 0)
        if self.placement == "prefix":
            return offsets
        assert after is not None, "check_fit asks for it"
        return jnp.where(after, offsets, 0)

    def select(self, ids: Int[Array, " B"]) -> "KV":
        """The bank's prefixes `ids`, one per row: N = B.

        Raises InputError for an id that the bank does not have. Inside a compiled
        program, which cannot, such an id gives NaN keys, hence NaN logits.
        """
        if not isinstance(ids, Tracer):
            _check_known(np.asarray(ids), self.number)

        def take(x):
            known = (ids >= 0) & (ids < x.shape[1])
            fill = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
            index = jnp.where(known, ids, x.shape[1])
            return jnp.take(x, index, axis=1, mode="fill", fill_value=fill)

        return dataclasses.replace(
            self,
            keys=take(self.keys),
            values=take(self.values),
            lengths=None if self.lengths is None else take(self.lengths),
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

        keys, values = self.broadcast(rows)
        lengths = None if self.lengths is None else _of_rows(self.lengths, rows)
        return dataclasses.replace(
            self,
            keys=keys.astype(dtype),
            values=values.astype(dtype),
            lengths=lengths,
        )

    def broadcast(
        self, rows: int
    ) -> tuple[Float[Array, "L rows S H K"], Float[Array, "L rows S H K"]]:
        """Keys and values of a shared prefix for each row; others stay as they are."""
        return _of_rows(self.keys, rows), _of_rows(self.values, rows)

    def shorten(self, length: int) -> "KV":
        """The first `length` positions alone.

        Raises InputError where there are fewer.
        """
        if not 1 <= length <= self.length:
            raise InputError(
                f"a prefix of {self.length} positions cannot be cut to {length}; "
                f"expected 1 to {self.length}"
            )
        lengths = self.lengths
        return dataclasses.replace(
            self,
            keys=self.keys[:, :, :length],
            values=self.values[:, :, :length],
            lengths=None if lengths is None else jnp.minimum(lengths, length),
        )

    def limit(self, length: Int[Array, ""] | int) -> "KV":
        """What `shorten` gives, of the same shape: `length` may be traced."""
        whole = jnp.full(self.keys.shape[:2], self.length, jnp.int32)
        lengths = whole if self.lengths is None else self.lengths
        return dataclasses.replace(self, lengths=jnp.minimum(lengths, length))

    def check_fit(
        self, config: Shape, rows: int, after: Bool[Array, "rows T"] | None
    ) -> None:
        """InputError unless a text of so many rows can be read with it.

        `after` marks the tokens after an infix, and is for an infix only.
        """
        self.check_shape(config)
        if rows % self.number:
            raise InputError(
                f"{self.number} prefixes cannot be shared by {rows} rows: choose one "
                "for each row (prefix_ids)"
            )
        if self.placement == "infix" and config.windows is not None:
            raise InputError(
                "this backbone's layers see no further back than a window, for which "
                "an infix has no place; use a prefix"
            )
        if self.placement == "infix" and after is None:
            raise InputError(
                "an infix stands inside the text; mark with `after` the tokens that "
                "come after it"
            )
        if self.placement == "prefix" and after is not None:
            raise InputError(
                "`after` is for an infix; all of the text comes after a prefix"
            )

    def check_shape(self, config: Shape) -> None:
        """InputError unless it has the layers and heads of such a backbone."""
        layers, _, _, heads, width = self.keys.shape
        own = config.n_layer, config.kv_heads, config.head_width
        if (layers, heads, width) != own:
            raise InputError(
                f"the prefix has {layers} layers of {heads} heads of width {width}; "
                f"the backbone has {own[0]} of {own[1]} of {own[2]}"
            )


def of_rows(prefix: KV | None, ids: Int[Array, " rows"] | None, rows: int) -> KV | None:
    """Each row's prefix of a bank by `ids`; without them the one, or as they come.

    Raises InputError where the numbers of ids or prefixes are not that of the rows.
    """
    if ids is not None:
        if prefix is None or len(ids) != rows:
            raise InputError(
                f"{len(ids)} prefix_ids for {rows} rows and "
                f"{0 if prefix is None else prefix.number} prefixes; give a bank of "
                "prefixes, and an id for each row"
            )
        return prefix.select(ids)
    if prefix is not None and prefix.number not in (1, rows):
        raise InputError(
            f"{prefix.number} prefixes for {rows} rows: choose one for each row "
            "(prefix_ids)"
        )
    return prefix


def check_prefix_ids(
    prefix: KV | None,
    prefix_ids: Sequence[int] | Int[np.ndarray, "_"] | None,
    rows: int,
) -> Int32[np.ndarray, " rows"]:
    """Which of the prefixes each row uses; all the only one where nothing is given.

    Raises InputError for what is no number of a prefix for each row, and no KV.
    """
    check_kv(prefix)
    if prefix_ids is None:
        if prefix is not None and prefix.number > 1:
            raise InputError(
                f"there are {prefix.number} prefixes: say with prefix_ids which one "
                "each row uses"
            )
        return np.zeros(rows, np.int32)
    if prefix is None:
        raise InputError("prefix_ids were given without a prefix to choose from")
    ids = np.asarray(prefix_ids)
    if ids.shape != (rows,) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"prefix_ids must be {rows} integers, one for each row; got "
            f"{ids.dtype}{list(ids.shape)}"
        )
    _check_known(ids, prefix.number)
    return ids.astype(np.int32)


def check_kv(prefix: object) -> None:
    """InputError for what stands in the place of a prefix and is none."""
    if prefix is not None and not isinstance(prefix, KV):
        raise InputError(
            f"expected a prefix as a KV, got {prefix!r}: load a stored one with "
            "load_prefix, and call what init_prefix gives"
        )


def _check_known(ids: Int[np.ndarray, "_"], number: int) -> None:
    unknown = np.flatnonzero((ids < 0) | (ids >= number))
    if len(unknown):
        raise InputError(
            f"row {unknown[0]} asks for prefix {ids[unknown[0]]}; there are {number} "
            f"(0 to {number - 1})"
        )


def _of_rows(x: Array, rows: int) -> Array:
    if x.shape[1] > 1:
        return x
    return jnp.broadcast_to(x, (x.shape[0], rows, *x.shape[2:]))
