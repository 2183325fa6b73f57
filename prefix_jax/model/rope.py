"""Rotary positions (Su et al. 2021), and how models stretch them to longer texts.

Behaviour after transformers' modeling_rope_utils, tested against it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from prefix_jax.checks import Above, Bounds, Positive, check, hints
from prefix_jax.errors import InputError, shown

Factor = Annotated[float, Bounds(least=1)]
Turns = Annotated[float, Bounds(least=1e-3, most=1e6)]

_NEEDED = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "truncate")}
"""By `rope_type`, what it takes besides `rope_theta`."""
_NUMBERS = {
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
}
"""Fields that are not whole ones."""


class Rotation(NamedTuple):
    """By how much each pair of a head's numbers is turned, at each token."""

    cos: Float[Array, "#B T 1 1 pairs"]
    sin: Float[Array, "#B T 1 1 pairs"]

    def apply(self, x: Float[Array, "B T G J K"]) -> Float[Array, "B T G J K"]:
        """The same heads turned, in f32 and rounded to their type once.

        Pairs are numbers i and i + K/2, as in Hugging Face's files.
        """
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = (
            first * self.cos - second * self.sin,
            second * self.cos + first * self.sin,
        )
        return jnp.concatenate(turned, -1).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Rope:
    """`rope_parameters` of a `config.json`, with transformers' names and defaults."""

    rope_type: Literal["default", "linear", "llama3", "yarn"] = "default"
    rope_theta: Annotated[float, Bounds(above=1)] = 10_000.0
    factor: Factor | None = None
    original_max_position_embeddings: Positive | None = None
    low_freq_factor: Above | None = None
    high_freq_factor: Above | None = None
    attention_factor: Above | None = None
    beta_fast: Turns | None = None
    beta_slow: Turns | None = None
    truncate: bool = True

    def __post_init__(self):
        for field, hint in hints(type(self)).items():
            check(f"rope_parameters.{field}", getattr(self, field), hint)
        needed = _NEEDED[self.rope_type]
        for field in needed:
            if getattr(self, field) is None:
                raise InputError(
                    f"rope_parameters.{field} is missing; rope_type "
                    f"{self.rope_type!r} needs it"
                )
        taken = "rope_type", "rope_theta", *needed, *_OPTIONAL.get(self.rope_type, ())
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in taken and value != field.default:
                raise InputError(
                    f"rope_parameters.{field.name} is {value}, which rope_type "
                    f"{self.rope_type!r} does not use; give the rope_type that does, "
                    "or take it out"
                )
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3" and low and high and low >= high:
            raise InputError(
                f"rope_parameters.low_freq_factor is {low}; expected less than "
                f"high_freq_factor, {high}"
            )

    @classmethod
    def from_dict(cls, values: Mapping, positions: object) -> "Rope":
        """From what a `config.json` has for it; `positions` are those of the model.

        InputError for parameters that are not known here.
        """
        fields = dict(values)
        # Older files' name.
        fields.setdefault("rope_type", fields.pop("type", "default"))
        fields.pop("type", None)
        kind = fields["rope_type"]
        if not isinstance(kind, str) or kind not in _NEEDED:
            raise InputError(
                f"rope_type is {shown(kind)}; expected one of {', '.join(_NEEDED)}"
            )
        if kind in ("llama3", "yarn"):
            fields.setdefault("original_max_position_embeddings", positions)
        if fields.get("partial_rotary_factor") in (None, 1, 1.0):
            fields.pop("partial_rotary_factor", None)
        fields.pop("finetuned", None)  # tells of training
        fields = {name: value for name, value in fields.items() if value is not None}
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields.keys() - known:
            raise InputError(
                f"rope_parameters has {shown(name)}, which may change what is computed "
                f"and is not known here; known are {', '.join(sorted(known))}"
            )
        for name in _NUMBERS & fields.keys():
            # 10000 is 10000.0, also to the fingerprint of the backbone.
            if isinstance(value := fields[name], int) and 0 < value < 2**53:
                fields[name] = float(value)
        return cls(**fields)

    def fields(self) -> dict[str, object]:
        """As a `config.json` has it."""
        values = dataclasses.asdict(self)
        if self.truncate:
            del values["truncate"]
        return {name: value for name, value in values.items() if value is not None}

    @property
    def reach(self) -> int:
        """Positions that a stretch of this kind was made for; 0: it does not say."""
        if self.rope_type != "yarn":
            return 0
        assert self.factor and self.original_max_position_embeddings
        return int(self.factor * self.original_max_position_embeddings)

    def rotation(self, positions: Int[Array, "#B T"], width: int) -> Rotation:
        """At these positions, for heads of `width` K."""
        speeds, size = self.inv_freq(width)
        angles = positions[:, :, None, None, None].astype(jnp.float32) * speeds
        return Rotation(jnp.cos(angles) * size, jnp.sin(angles) * size)

    def inv_freq(self, width: int) -> tuple[Float32[np.ndarray, "pairs"], float]:
        """Radians a position for each pair, and by how much all grow."""
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        plain = np.float32(1) / np.float32(self.rope_theta) ** exponents
        match self.rope_type:
            case "linear":
                assert self.factor is not None
                return plain / np.float32(self.factor), 1.0
            case "llama3":
                return self._llama3(plain), 1.0
            case "yarn":
                return self._yarn(plain, width)
        return plain, 1.0

    def _llama3(self, plain: Float32[np.ndarray, "_"]) -> Float32[np.ndarray, "_"]:
        """Slow pairs are slowed down, fast ones not, between them gradually."""
        low, high = self.low_freq_factor, self.high_freq_factor
        known = self.original_max_position_embeddings
        assert self.factor and low and high and known
        turns = known * plain / np.float32(2 * math.pi)  # within the known positions
        share = np.clip((turns - low) / (high - low), 0, 1)
        return ((1 - share) * plain / self.factor + share * plain).astype(np.float32)

    def _yarn(
        self, plain: Float32[np.ndarray, "_"], width: int
    ) -> tuple[Float32[np.ndarray, "_"], float]:
        """Peng et al. 2023, section 3.4: gradually by the number of the pair."""
        known = self.original_max_position_embeddings
        assert self.factor and known

        def pair(turns: float) -> float:
            """That turns so often within the known positions."""
            ratio = math.log(known / (turns * 2 * math.pi))
            return width * ratio / (2 * math.log(self.rope_theta))

        low, high = pair(self.beta_fast or 32.0), pair(self.beta_slow or 1.0)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        if low == high:
            high += 0.001
        share = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
        speeds = share * plain / self.factor + (1 - share) * plain
        grown = self.attention_factor
        if grown is None:
            grown = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        return speeds.astype(np.float32), grown
