"""What the library asks of a backbone's configuration, whatever its family."""

import abc
from collections.abc import Mapping

from prefix_jax.errors import InputError


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


def check_causal(values: Mapping) -> None:
    """InputError where a `config.json` says that tokens see later ones."""
    if values.get("is_causal", True) is False:
        raise InputError(
            "is_causal is False; expected a model whose tokens see none after them"
        )
