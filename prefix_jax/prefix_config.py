"""What a prefix is and what it starts from, as a frozen dataclass."""

import dataclasses
from typing import Literal

from prefix_jax.checks import Section, Share, Size
from prefix_jax.errors import InputError

PositionMode = Literal["shifted", "unshifted"]


@dataclasses.dataclass(frozen=True)
class PrefixConfig(Section):
    """The learned keys and values (Li & Liang 2021, section 4)."""

    kind: Literal["flat", "mlp"] = "flat"
    """`flat`: the keys and values themselves; `mlp`: the paper's reparametrisation."""
    length: Size | None = 10
    """Positions. None: as long as the words or examples it starts from."""
    hidden: Size = 512
    """Width of the MLP (`mlp` only)."""
    dropout: Share = 0.0
    """Share of prefix elements dropped at each training step."""
    init: Literal["random", "words", "examples", "zeros"] | None = None
    """Start from noise of the activations' size, from the keys and values that the
    backbone gives `words` or a few training examples, or from zeros (null). None:
    `examples` where there are some, as in every run, else `random`."""
    examples: Size = 3
    """Training examples that `init="examples"` reads; together they fill `length`."""
    words: str = ""
    """The words of `init="words"`, for example "table-to-text:"; repeated to fill."""
    position_mode: PositionMode = "shifted"
    """`shifted`: text positions start after the prefix, as in Hugging Face's models;
    `unshifted`: they start at 0."""

    def __post_init__(self):
        super().__post_init__()
        if self.init == "words" and not self.words.strip():
            raise InputError(
                'prefix.init is "words" but prefix.words is empty; '
                'give the words, for example --prefix.words "table-to-text:"'
            )
        if self.length is None and self.init in ("random", "zeros"):
            raise InputError(
                f'prefix.length is None with prefix.init "{self.init}"; '
                "give a number of positions, or start from words or examples"
            )
        # A setting that changes nothing is a mistake in another one.
        for name, owner, kinds in (
            ("words", "init", ("words",)),
            ("examples", "init", ("examples", None)),
            ("hidden", "kind", ("mlp",)),
        ):
            given, choice = getattr(self, name), getattr(self, owner)
            if given != getattr(type(self), name) and choice not in kinds:
                raise InputError(
                    f"prefix.{name} is {given!r} but prefix.{owner} is "
                    f'{choice!r}; it is for "{kinds[0]}" only'
                )
