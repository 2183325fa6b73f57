"""What the library asks of a backbone's configuration, whatever its family."""

import abc
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from prefix_jax.checks import Bounds
from prefix_jax.errors import InputError, shown

Small = Annotated[float, Bounds(least=0, most=1_000)]
Layers = Annotated[int, Bounds(least=1, most=10_000)]

HARMLESS = frozenset(
    (
        *("model_type", "architectures", "auto_map", "dtype", "torch_dtype"),
        *("transformers_version", "transformers.js_config", "use_cache"),
        *("use_bfloat16", "torchscript", "tf_legacy_loss", "attn_implementation"),
        *("tokenizer_class", "tokenizer_file", "pad_token_id", "unk_token_id"),
        *("sep_token_id", "cls_token_id", "attention_dropout", "hidden_dropout"),
        *("embd_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
        *("gradient_checkpointing", "unsloth_version", "unsloth_fixed"),
        *("is_llama_config", "finetuning_task", "return_dict", "output_attentions"),
        *("output_hidden_states", "output_past", "id2label", "label2id"),
        *("problem_type", "task_specific_params", "prefix", "is_decoder"),
        *("is_encoder_decoder", "tie_encoder_decoder", "decoder_start_token_id"),
        *("chunk_size_feed_forward", "pruned_heads"),
        # How texts were generated, of files that older releases wrote.
        *("do_sample", "early_stopping", "temperature", "top_k", "top_p"),
        *("typical_p", "num_beams", "num_beam_groups", "diversity_penalty"),
        *("num_return_sequences", "min_length", "max_length", "length_penalty"),
        *("repetition_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "suppress_tokens"),
        *("begin_suppress_tokens", "output_scores"),
        *("exponential_decay_length_penalty", "return_dict_in_generate"),
    )
)
"""Fields of any `config.json` that change no logit of the models here."""


class Shape(abc.ABC):
    """The facts, by GPT-2's names; a family's configuration has more."""

    vocab_size: int
    n_positions: int
    """The most that a text and the prefix before it may take."""
    n_embd: int
    n_layer: int
    n_head: int
    """Of queries."""
    tie_word_embeddings: bool
    """Whether the token embedding is the output head, too."""
    initializer_range: float
    """Standard deviation of random weights."""
    bos_token_id: int | None
    eos_token_id: int | None
    more_eos_token_ids: tuple[int, ...]
    """Further tokens that end a text."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """All that end a text, of the tokens that there are: a -1 means none."""
        ends = (self.eos_token_id, *self.more_eos_token_ids)
        known = range(self.vocab_size)
        return tuple(end for end in ends if end is not None and end in known)

    @property
    @abc.abstractmethod
    def kv_heads(self) -> int:
        """Of keys and values, and so of a prefix; divides `n_head`."""

    @property
    @abc.abstractmethod
    def head_width(self) -> int:
        """Numbers of one head's query, key or value, K."""

    @property
    def kv_width(self) -> int:
        """Numbers of all keys, or of all values, of one position in one layer."""
        return self.kv_heads * self.head_width

    @property
    @abc.abstractmethod
    def windows(self) -> tuple[int, ...] | None:
        """How many positions back, itself included, a token sees in each layer.

        None: everywhere all.
        """

    @property
    @abc.abstractmethod
    def architecture(self) -> str:
        """The class of transformers that reads such a model."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, values: Mapping) -> "Shape":
        """From the contents of a `config.json`.

        Raises InputError for what it says of another model, or of none.
        """

    @abc.abstractmethod
    def fields(self) -> dict[str, object]:
        """All of the configuration, by the names that `config.json` has for it."""

    @abc.abstractmethod
    def variant(self) -> dict[str, object]:
        """What the logits depend on besides the parameters and their shapes."""

    @property
    @abc.abstractmethod
    def scales_alike(self) -> bool:
        """Whether attention scores are scaled by the same number in every layer."""

    def check_room(self, length: int, what: str) -> None:
        """InputError where `length` positions leave none for text; `what` has them."""
        if length >= self.n_positions:
            raise InputError(
                f"{what} of length {length} leaves no room for text in the backbone's "
                f"{self.n_positions} positions; give a shorter one"
            )


def unknown_fields(values: Mapping, known: Collection[str]) -> list[str]:
    """What a `config.json` says of a model besides `known` and `HARMLESS` fields."""
    return [
        name
        for name in sorted(values.keys() - known - HARMLESS - {"is_causal"})
        # A zero could be a scale; what is empty or False asks for nothing.
        if not (values[name] is None or values[name] is False)
        and values[name] not in ("", [], {})
        and not name.startswith("_")
    ]


def check_known(kind: str, values: Mapping, known: Collection[str]) -> None:
    """InputError for what a `config.json` says of a model that is not honoured."""
    if values.get("is_causal", True) is False:
        raise InputError(
            "is_causal is False; expected a model whose tokens see none after them"
        )
    if given := values.get("quantization_config"):
        how = given.get("quant_method") if isinstance(given, Mapping) else None
        raise InputError(
            f"its weights are quantized (quantization_config, {shown(how)}), which is "
            "not read here; give the model as it was before, or a GGUF file of it"
        )
    for name in unknown_fields(values, known):
        raise InputError(
            f"{shown(name)} is {shown(values[name])}, which may change what a {kind} "
            "computes and is not known here; take it out of the file if it does not"
        )


def ends_of(values: Mapping) -> dict[str, Any]:
    """The fields of a configuration for an `eos_token_id`, if any is there.

    One token, none, or a list of them, of which training writes the first.
    """
    if "eos_token_id" not in values:
        return {}
    ends = values["eos_token_id"]
    if not isinstance(ends, list):
        return {"eos_token_id": ends}
    first, *more = ends or [None]
    return {"eos_token_id": first, "more_eos_token_ids": tuple(more)}


def with_ends(fields: dict[str, object]) -> dict[str, object]:
    """The inverse of `ends_of`, within all fields of a configuration."""
    more = fields.pop("more_eos_token_ids")
    if more:
        assert isinstance(more, tuple)
        fields["eos_token_id"] = [fields["eos_token_id"], *more]
    return fields
