"""Which GPT-2: shape and variant, in Hugging Face's terms."""

import dataclasses
from collections.abc import Mapping

from prefix_jax.checks import Size, check, hints
from prefix_jax.errors import InputError, shown
from prefix_jax.model.activations import check_activation
from prefix_jax.model.shape import (
    Layers,
    Shape,
    Small,
    check_known,
    ends_of,
    with_ends,
)

_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_SUMMARY = {
    *("summary_type", "summary_use_proj", "summary_activation"),
    *("summary_proj_to_labels", "summary_first_dropout"),
}
"""Of a head that classifies, which no checkpoint of a language model has."""


@dataclasses.dataclass(frozen=True)
class GPT2Config(Shape):
    """Shape and variant, with Hugging Face's field names and defaults."""

    vocab_size: Size = 50257
    n_positions: Size = 1024
    n_embd: Size = 768
    n_layer: Layers = 12
    n_head: Size = 12
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Small = 1e-5
    initializer_range: Small = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    more_eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for field, hint in hints(type(self)).items():
            check(field, getattr(self, field), hint)
        check_activation(self.activation_function, "activation_function", learned=True)
        if self.n_embd % self.n_head:
            raise InputError(
                f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}"
            )

    @property
    def kv_heads(self) -> int:
        return self.n_head

    @property
    def head_width(self) -> int:
        return self.n_embd // self.n_head

    @property
    def windows(self) -> None:
        return None

    @property
    def mlp_width(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def architecture(self) -> str:
        return "GPT2LMHeadModel"

    def fields(self) -> dict[str, object]:
        return {"model_type": "gpt2", **with_ends(dataclasses.asdict(self))}

    def variant(self) -> dict[str, object]:
        return {
            "n_head": self.n_head,
            "activation_function": self.activation_function,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
        }

    @property
    def scales_alike(self) -> bool:
        return not self.scale_attn_by_inverse_layer_idx

    @classmethod
    def from_dict(cls, values: Mapping) -> "GPT2Config":
        """From the contents of a `config.json`; fields that change nothing are ignored.

        Raises InputError where the file describes another architecture, or what this
        model does not have, such as cross-attention.
        """
        if values.get("model_type", "gpt2") != "gpt2":
            given = shown(values["model_type"])
            raise InputError(f"model_type is {given}; only 'gpt2' can be read")
        if values.get("add_cross_attention"):
            raise InputError(
                "add_cross_attention is set; expected a decoder-only GPT-2"
            )
        check_known("gpt2", values, known_fields())
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in values.items() if name in names}
        for alias, name in _ALIASES.items():
            value = values.get(alias)
            if value is not None and fields.setdefault(name, value) != value:
                raise InputError(
                    f"{name} is {shown(fields[name])}, but {alias}, another name for "
                    f"it, {shown(value)}; expected one of them"
                )
        return cls(**fields | ends_of(values))


def known_fields() -> set[str]:
    """Those of a `config.json` that are honoured, or change nothing in a GPT-2."""
    own = {field.name for field in dataclasses.fields(GPT2Config)}
    own -= {"more_eos_token_ids"}
    return own | _ALIASES.keys() | _SUMMARY | {"n_ctx", "add_cross_attention"}


RELEASED = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}
"""What the hub's config.json says of OpenAI's releases, by their names there."""
