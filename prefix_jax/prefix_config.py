"""What a prefix is and what it starts from, as a frozen dataclass."""

import dataclasses
from typing import Literal

from prefix_jax.checks import NotNegative, Section, Share, Size
from prefix_jax.errors import InputError

PositionMode = Literal["shifted", "unshifted"]
Placement = Literal["prefix", "infix"]


@dataclasses.dataclass(frozen=True)
class PrefixConfig(Section):
    """The learned keys and values (Li & Liang 2021, section 4)."""

    kind: Literal["flat", "mlp", "embedding"] = "flat"
    """`flat`: the keys and values themselves; `mlp`: the paper's reparametrisation;
    `embedding`: vectors that the backbone reads as if they were words (prompt tuning,
    Lester et al. 2021)."""
    length: Size | None = 10
    """Positions. None: as many as what it starts from has."""
    layers: tuple[NotNegative, ...] | None = None
    """Only these layers, counted from 0, have the prefix; None: all."""
    lengths: tuple[NotNegative, ...] | None = None
    """Positions in each layer, one number a layer; the longest of them is `length`."""
    placement: Placement = "prefix"
    """`prefix`: before the source; `infix` (the paper's section 7.3): between source
    and target, so that the source does not see it."""
    position_mode: PositionMode = "shifted"
    """`shifted`: text positions start after the prefix, as in Hugging Face's models;
    `unshifted`: they start at 0."""
    gate: bool = False
    """A softmax of its own for the prefix, times a learned number for each layer and
    head of keys that starts at 0 (LLaMA-Adapter, Zhang et al. 2023)."""
    nested: tuple[Size, ...] = ()
    """Shorter lengths that the first positions alone are trained for too: each step
    draws one of them, or the whole length."""
    hidden: Size = 512
    """Width of the MLP (`mlp` only)."""
    dropout: Share = 0.0
    """Share of prefix elements dropped at each training step."""
    init: Literal["random", "words", "labels", "examples", "prefix", "zeros"] | None = (
        None
    )
    """Start from noise of the activations' size, from the keys and values that the
    backbone gives `words`, the names in `labels` or a few training examples, from the
    stored prefix `start`, or from zeros (null). None: `examples` where there are some,
    as in every run, else `random`."""
    examples: Size = 3
    """Training examples that `init="examples"` reads; together they fill `length`."""
    words: str = ""
    """The words of `init="words"`, for example "table-to-text:"; repeated to fill."""
    labels: tuple[str, ...] = ()
    """The names of `init="labels"`, for example positive negative; each gets a like
    share of `length`, and they repeat to fill it."""
    start: str = ""
    """Folder of the prefix of `init="prefix"`; in each layer its first positions are
    taken, and repeated to fill."""

    def __post_init__(self):
        super().__post_init__()
        self._check_start()
        self._check_lengths()
        self._check_used()
        if self.kind == "embedding":
            self._check_embedding()
        if self.gate and self.position_mode != "unshifted":
            raise InputError(
                'prefix.gate is True with prefix.position_mode "shifted": a gate of 0 '
                "must be no prefix at all, but the text would still start to count "
                'after it; give --prefix.position-mode "unshifted"'
            )
        if self.gate and self.init == "zeros":
            raise InputError(
                'prefix.gate is True with prefix.init "zeros": gate and values would '
                "both start at 0 and keep each other's gradient at 0; start from "
                "anything else"
            )

    @property
    def longest(self) -> int | None:
        """Positions of the layer that has the most; None: as what it starts from."""
        return self.length if self.lengths is None else max(self.lengths, default=0)

    def _check_start(self):
        for init, given, example in (
            ("words", self.words.strip(), '--prefix.words "table-to-text:"'),
            ("labels", self.labels, "--prefix.labels positive negative"),
            ("prefix", self.start.strip(), "--prefix.start runs/mine"),
        ):
            if self.init == init and not given:
                name = "start" if init == "prefix" else init
                raise InputError(
                    f'prefix.init is "{init}" but prefix.{name} is empty; '
                    f"give it, for example {example}"
                )
        if not all(label.strip() for label in self.labels):
            raise InputError(
                f"prefix.labels {self.labels} has an empty name; leave it out"
            )
        if self.longest is None and self.init in ("random", "zeros"):
            raise InputError(
                f'prefix.length is None with prefix.init "{self.init}"; give a number '
                "of positions, or start from words, labels, examples or a prefix"
            )

    def _check_lengths(self):
        if self.layers is not None and self.lengths is not None:
            raise InputError(
                "prefix.layers and prefix.lengths are both given; a length of 0 in "
                "prefix.lengths already leaves a layer out, so give one of them"
            )
        if self.layers is not None and len(set(self.layers)) < max(len(self.layers), 1):
            raise InputError(
                f"prefix.layers is {self.layers}; expected at least one layer, and "
                "each of them once"
            )
        if self.lengths is not None and not any(self.lengths):
            raise InputError(
                f"prefix.lengths is {self.lengths}; expected one number a layer, not "
                "all of them 0"
            )
        if self.lengths is not None and self.length not in (
            type(self).length,
            self.longest,
        ):
            raise InputError(
                f"prefix.length is {self.length} but the longest of prefix.lengths is "
                f"{self.longest}; give --prefix.length {self.longest} too, or leave "
                "prefix.length out of the recipe"
            )
        if list(self.nested) != sorted(set(self.nested)):
            raise InputError(
                f"prefix.nested is {self.nested}; expected growing lengths, such as "
                "2 4 8"
            )
        if self.longest is not None and max(self.nested, default=0) > self.longest:
            raise InputError(
                f"prefix.nested has {max(self.nested)} positions but the prefix has "
                f"{self.longest}; lower it or raise prefix.length"
            )

    def _check_used(self):
        """A setting that changes nothing is a mistake in another one."""
        for name, owner, choices in (
            ("words", "init", ("words",)),
            ("labels", "init", ("labels",)),
            ("start", "init", ("prefix",)),
            ("examples", "init", ("examples", None)),
            ("hidden", "kind", ("mlp",)),
        ):
            given, choice = getattr(self, name), getattr(self, owner)
            if given != getattr(type(self), name) and choice not in choices:
                raise InputError(
                    f"prefix.{name} is {given!r} but prefix.{owner} is "
                    f'{choice!r}; it is for "{choices[0]}" only'
                )

    def _check_embedding(self):
        for name, reason in (
            (
                "layers",
                "the backbone makes the keys and values of every layer out of the "
                "same vectors",
            ),
            ("lengths", "one vector gives a position in every layer"),
            (
                "placement",
                "vectors after the source would have other keys and values for every "
                "source, so they could not be folded",
            ),
            ("gate", "a gated prompt is no prompt that the backbone could read"),
        ):
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(
                    f"prefix.{name} is {getattr(self, name)!r} but prefix.kind is "
                    f'"embedding": {reason}; use kind "flat" or "mlp"'
                )
