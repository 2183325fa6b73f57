"""Which GPT-2: shape and variant, in Hugging Face's terms."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from prefix_jax.checks import Bounds, Size, check, hints
from prefix_jax.errors import InputError, shown
from prefix_jax.model.activations import activation
from prefix_jax.model.shape import Shape, check_causal

Small = Annotated[float, Bounds(least=0, most=1_000)]


@dataclasses.dataclass(frozen=True)
class GPT2Config(Shape):
    """Shape and variant, with Hugging Face's field names and defaults."""

    vocab_size: Size = 50257
    n_positions: Size = 1024
    n_embd: Size = 768
    n_layer: Annotated[int, Bounds(least=1, most=10_000)] = 12
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

    def __post_init__(self):
        for field, hint in hints(type(self)).items():
            check(field, getattr(self, field), hint)
        activation(self.activation_function)
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
        return {"model_type": "gpt2", **dataclasses.asdict(self)}

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

        Raises InputError where the file describes another architecture or a GPT-2 with
        cross-attention, or one that sees later tokens, which this model does not have.
        """
        if values.get("model_type", "gpt2") != "gpt2":
            given = shown(values["model_type"])
            raise InputError(f"model_type is {given}; only 'gpt2' can be read")
        check_causal(values)
        if values.get("add_cross_attention"):
            raise InputError(
                "add_cross_attention is set; expected a decoder-only GPT-2"
            )
        aliases = {
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        }
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {aliases.get(name, name): value for name, value in values.items()}
        fields = {name: value for name, value in fields.items() if name in names}
        ends = fields.get("eos_token_id")
        if isinstance(ends, list):  # several may end a text; the first is written
            fields["eos_token_id"] = ends[0] if ends else None
        return cls(**fields)


RELEASED = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}
"""What the hub's config.json says of OpenAI's releases, by their names there."""
