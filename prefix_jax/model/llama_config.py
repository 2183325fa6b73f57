"""Which model of the Llama family: Llama, Mistral, Qwen2, Qwen3, of any shape."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from prefix_jax.checks import Bounds, Size, check, hints
from prefix_jax.errors import InputError, shown
from prefix_jax.model.activations import check_activation
from prefix_jax.model.rope import Rope
from prefix_jax.model.shape import (
    Layers,
    Shape,
    Small,
    check_known,
    ends_of,
    with_ends,
)

Kind = Literal["llama", "mistral", "qwen2", "qwen3"]

_ARCHITECTURES: dict[Kind, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_OURS = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
}
"""The shape's names for what the files call otherwise."""
_THEIRS = {ours: name for name, ours in _OURS.items()}
_DEFAULTS: dict[Kind, dict[str, object]] = {
    "llama": {},
    "mistral": {
        "n_inner": 14336,
        "num_key_value_heads": 8,
        "n_positions": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {"vocab_size": 151936, "n_inner": 22016, "n_positions": 32768},
    "qwen3": {
        "vocab_size": 151936,
        "n_inner": 22016,
        "n_positions": 32768,
        "head_dim": 128,
    },
}
"""What a file means that leaves a field out, where it is not what a Llama means."""
_QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_NOT_OF: dict[Kind, set[str]] = {
    "llama": {"sliding_window", "layer_types"},
    "mistral": {"attention_bias", "mlp_bias", "layer_types"},
    "qwen2": {"attention_bias", "mlp_bias"},
    "qwen3": {"mlp_bias"},
}
"""Fields of the family that transformers' model of that type has not."""
_ELSEWHERE = {
    *("rope_parameters", "rope_theta", "rope_scaling", "pretraining_tp"),
    *("use_sliding_window", "max_window_layers"),
}
"""Fields of files that are read where others are, or change no logit."""


@dataclasses.dataclass(frozen=True)
class LlamaConfig(Shape):
    """Shape and variant; sizes by the names of `Shape`, the rest by Hugging Face's."""

    model_type: Kind = "llama"
    vocab_size: Size = 32000
    n_positions: Annotated[int, Bounds(least=1, most=2**31 - 1)] = 2048
    n_embd: Size = 4096
    n_inner: Size = 11008
    n_layer: Layers = 32
    n_head: Size = 32
    num_key_value_heads: Size | None = None
    """None: as many as of queries."""
    head_dim: Size | None = None
    """None: what each of the heads gets of `n_embd`."""
    activation_function: str = "silu"
    rms_norm_eps: Small = 1e-6
    initializer_range: Small = 0.02
    tie_word_embeddings: bool = False
    rope: Rope = Rope()
    attention_bias: bool = False
    """Biases of queries, keys, values and what attention gives; Qwen2 has the first
    three whatever this says."""
    mlp_bias: bool = False
    sliding_window: Size | None = None
    layer_types: tuple[str, ...] | None = None
    """Of each layer `full_attention` or `sliding_attention`; None: all have the window,
    if there is one."""
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    more_eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for field, hint in hints(type(self)).items():
            if field != "rope":
                check(_THEIRS.get(field, field), getattr(self, field), hint)
        for name in _NOT_OF[self.model_type]:
            if (value := getattr(self, name)) not in (None, False):
                raise InputError(
                    f"{name} is {shown(value)}; a {self.model_type} has none"
                )
        check_activation(self.activation_function, "hidden_act", learned=False)
        if self.head_dim is None and self.n_embd % self.n_head:
            raise InputError(
                f"hidden_size {self.n_embd} is not a multiple of num_attention_heads "
                f"{self.n_head}, and there is no head_dim"
            )
        if self.head_width % 2:
            raise InputError(
                f"head_dim is {self.head_width}; rotary positions need an even one"
            )
        if self.n_head % self.kv_heads:
            raise InputError(
                f"num_attention_heads {self.n_head} is not a multiple of "
                f"num_key_value_heads {self.kv_heads}"
            )
        if self.layer_types is not None:
            self._check_layer_types(self.layer_types)

    def _check_layer_types(self, given: tuple[str, ...]) -> None:
        known = "full_attention", "sliding_attention"
        if len(given) != self.n_layer or not set(given) <= set(known):
            raise InputError(
                f"layer_types is {shown(list(given))}; expected {self.n_layer} of "
                f"{' or '.join(known)}"
            )
        if "sliding_attention" in given and self.sliding_window is None:
            raise InputError(
                "layer_types has sliding_attention, but there is no sliding_window"
            )

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.n_head

    @property
    def head_width(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def windows(self) -> tuple[int, ...] | None:
        if self.sliding_window is None:
            return None
        types = self.layer_types or ("sliding_attention",) * self.n_layer
        if "sliding_attention" not in types:
            return None
        full = 2**31 - 1
        return tuple(
            self.sliding_window if kind == "sliding_attention" else full
            for kind in types
        )

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether each head's queries and keys are normalised."""
        return self.model_type == "qwen3"

    @property
    def scales_alike(self) -> bool:
        return True

    @property
    def architecture(self) -> str:
        return _ARCHITECTURES[self.model_type]

    def fields(self) -> dict[str, object]:
        values = with_ends(dataclasses.asdict(self))
        values["rope_parameters"] = rope = self.rope.fields()
        del values["rope"]
        # As transformers before 5 read it, which would pass over the new names.
        values["rope_theta"] = self.rope.rope_theta
        if self.rope.rope_type != "default":
            values["rope_scaling"] = {
                k: v for k, v in rope.items() if k != "rope_theta"
            }
        values = {_THEIRS.get(name, name): value for name, value in values.items()}
        values["num_key_value_heads"] = self.kv_heads
        values["head_dim"] = self.head_width
        del values["layer_types"]
        if self.model_type.startswith("qwen"):
            windows = self.windows or (math.inf,) * self.n_layer
            values["use_sliding_window"] = self.sliding_window is not None
            values["layer_types"] = [
                "sliding_attention" if size == self.sliding_window else "full_attention"
                for size in windows
            ]
        return values

    def variant(self) -> dict[str, object]:
        names = (
            "model_type",
            "n_head",
            "num_key_value_heads",
            "activation_function",
            "rms_norm_eps",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "num_key_value_heads": self.kv_heads,
            "rope": self.rope.fields(),
            "windows": self.windows,
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> "LlamaConfig":
        """From the contents of a `config.json`, with its model's defaults.

        Raises InputError for fields that are neither known to change nothing nor
        honoured here, and for several that contradict each other.
        """
        kind = values.get("model_type", "llama")
        if not isinstance(kind, str) or kind not in _ARCHITECTURES:
            raise InputError(
                f"model_type is {shown(kind)}; expected one of "
                f"{', '.join(_ARCHITECTURES)}"
            )
        known = known_fields(kind)
        types = values.get("layer_types")
        if isinstance(types, list) and types == ["full_attention"] * len(types):
            known.add("layer_types")  # in a Llama, too, where it says nothing
        if values.get("partial_rotary_factor") in (1, 1.0):
            known.add("partial_rotary_factor")
        check_known(kind, values, known)
        fields: dict[str, Any] = {
            field.name: field.default for field in dataclasses.fields(cls)
        }
        fields |= _DEFAULTS[kind]
        if kind.startswith("qwen"):
            fields |= _QWEN_DEFAULTS
        for name in known_fields(kind) & values.keys():
            fields[_OURS.get(name, name)] = values[name]
        fields["rope"] = rope = _rope(values, fields["n_positions"])
        if isinstance(fields["n_positions"], int):
            # YaRN is also asked for in files that still say what it starts from.
            fields["n_positions"] = max(fields["n_positions"], rope.reach)
        _settle_windows(kind, values, fields)
        fields |= ends_of(values)
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: fields[name] for name in fields.keys() & names})


def known_fields(kind: Kind) -> set[str]:
    """Those of a `config.json` that are honoured, or change nothing."""
    own = {field.name for field in dataclasses.fields(LlamaConfig)}
    own = own - {"rope", "more_eos_token_ids"} - set(_OURS.values())
    return (own | _OURS.keys() | _ELSEWHERE) - _NOT_OF[kind]


def _rope(values: Mapping, positions: object) -> Rope:
    """From whatever a `config.json` has of it, under its new names or older ones."""
    found: dict[str, Rope] = {}
    for name in ("rope_parameters", "rope_scaling"):
        given = values.get(name)
        if not isinstance(given, Mapping | None):
            raise InputError(f"{name} is {shown(given)}; expected an object")
        if given:
            given = {key: value for key, value in given.items() if value is not None}
            if values.get("rope_theta") is not None:
                given = {"rope_theta": values["rope_theta"], **given}
            found[name] = Rope.from_dict(given, positions)
    if len(set(found.values())) == 2:
        raise InputError(
            f"rope_parameters is {shown(values['rope_parameters'])}, but rope_scaling "
            f"is {shown(values['rope_scaling'])}; expected one of them"
        )
    if found:
        return next(iter(found.values()))
    theta = values.get("rope_theta")
    return Rope() if theta is None else Rope.from_dict({"rope_theta": theta}, positions)


def _settle_windows(kind: Kind, given: Mapping, fields: dict[str, Any]) -> None:
    """Which layers have a window, as the models' own configurations say it."""
    if not kind.startswith("qwen"):
        return
    if isinstance(types := fields.get("layer_types"), list):
        fields["layer_types"] = tuple(types)
    wanted = given.get("use_sliding_window")
    check("use_sliding_window", wanted, bool | None)
    if not wanted:
        fields["sliding_window"] = None
    first, layers = fields["max_window_layers"], fields["n_layer"]
    if fields.get("layer_types") is None and fields["sliding_window"] is not None:
        check("max_window_layers", first, int)
        check("num_hidden_layers", layers, Size)
        fields["layer_types"] = tuple(
            "sliding_attention" if layer >= first else "full_attention"
            for layer in range(layers)
        )


RELEASED = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        n_positions=8192,
        n_embd=576,
        n_inner=1536,
        n_layer=30,
        n_head=9,
        num_key_value_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope=Rope(rope_theta=100_000.0),
    ),
}
"""What the files of models say that come in packages, by their names here."""
