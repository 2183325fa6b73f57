"""Everything a run can be told, as frozen dataclasses; a recipe is one `Config`.

Each section is one command-line prefix (`--prefix.length 10`). Field names are the
field's standard terms; units stand in the comments.
"""

import dataclasses
from typing import Literal

from prefix_jax.errors import InputError

PositionMode = Literal["shifted", "unshifted"]
Method = Literal["prefix", "full", "top2"]


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The frozen language model."""

    name: str = "tiny"
    """`tiny` (bundled), a Hugging Face hub name, or a folder with config.json."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random`: only config.json and the tokenizer are read; for pre-training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights and of the arithmetic between them."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, about 1.3x the time."""


@dataclasses.dataclass(frozen=True)
class PrefixConfig:
    """The learned keys and values (Li & Liang 2021, section 4)."""

    kind: Literal["flat", "mlp"] = "flat"
    """`flat`: the keys and values themselves; `mlp`: the paper's reparametrisation."""
    length: int | None = 10
    """Positions. None: as long as the words or examples it starts from."""
    hidden: int = 512
    """Width of the MLP (`mlp` only)."""
    dropout: float = 0.0
    """Share of prefix elements dropped at each training step."""
    init: Literal["random", "words", "examples", "zeros"] = "examples"
    """Start from noise of the activations' size, from the keys and values that the
    backbone gives `words` or a few training examples, or from zeros (null)."""
    examples: int = 3
    """Training examples that `init="examples"` reads."""
    words: str = ""
    """The words of `init="words"`, for example "table-to-text:"; repeated to fill."""
    position_mode: PositionMode = "shifted"
    """`shifted`: text positions start after the prefix, as in Hugging Face's models;
    `unshifted`: they start at 0."""

    def __post_init__(self):
        if self.length is not None and self.length < 1:
            raise InputError(f"prefix.length is {self.length}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"prefix.dropout is {self.dropout}; expected 0 <= p < 1")
        if self.examples < 1:
            raise InputError(
                f"prefix.examples is {self.examples}; it must be at least 1"
            )
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


_DATA_CHOICES = {
    "task": ("table_to_text", "language_modelling"),
    "overflow": ("truncate_source", "drop", "error"),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they become rows of tokens."""

    task: Literal["table_to_text", "language_modelling"] = "table_to_text"
    source: str = "files"
    """`files` (JSONL, CSV, TSV, text), `quickstart`, `e2e` (the official CSV files), or
    `tfds:NAME` (any TFDS data set whose files are array_record)."""
    path: str | None = None
    """Folder that holds the files (for `tfds:`, the TFDS data_dir)."""
    train: str = "train"
    """Split: a file's name in `path` (the ending may be left out), or a split's name.
    So are the next two."""
    validation: str = "validation"
    test: str | None = "test"
    source_column: str = "source"
    target_column: str = "target"
    max_length: int = 256
    """Tokens of source, separator, target and end together."""
    max_target_length: int | None = None
    """Tokens of the target, its end not counted; None: only `max_length` limits it."""
    overflow: Literal["truncate_source", "drop", "error"] = "truncate_source"
    """What happens to an example that is too long: its source (and a target that is too
    long alone) loses its end, it is left out, or it is an error; always reported."""
    buckets: tuple[int, ...] = ()
    """Padded row lengths; (): chosen from the data. Each is one compiled program."""
    limit: int | None = None
    """Train on the first n examples of the seeded permutation only; None: on all."""

    def __post_init__(self):
        for name, expected in _DATA_CHOICES.items():
            if getattr(self, name) not in expected:
                raise InputError(
                    f'data.{name} is "{getattr(self, name)}"; '
                    f"expected one of {', '.join(expected)}"
                )
        # Source and target of one token each, separator and end.
        if self.max_length < 4:
            raise InputError(f"data.max_length is {self.max_length}; at least 4 needed")
        for name in ("max_target_length", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(
                    f"data.{name} is {value}; expected at least 1, or None for no limit"
                )
        if any(bucket < 1 for bucket in self.buckets):
            raise InputError(
                f"data.buckets is {self.buckets}; expected row lengths of at least 1"
            )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon`, for pre-training: orthogonalised momentum for matrices, else AdamW."""
    learning_rate: float | None = None
    """Peak rate. None: 0.1 for a flat prefix, whose units are the activations' own
    size; 1e-3 for an MLP's or the backbone's weights."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up: down to 0 at the last step, or constant."""
    warmup_steps: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; None: never."""

    def __post_init__(self):
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(
                f"optim.learning_rate is {self.learning_rate}; it must be above 0"
            )
        if self.warmup_steps < 0:
            raise InputError(
                f"optim.warmup_steps is {self.warmup_steps}; it must be at least 0"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(
                f"optim.clip_norm is {self.clip_norm}; it must be above 0, or None"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    method: Method = "prefix"
    """What is trained: the prefix, the whole backbone, or its top two layers."""
    steps: int = 500
    batch_size: int = 16
    """Examples per optimizer step, over all devices."""
    accumulate: int = 1
    """Micro-batches that one step is cut into, to save memory."""
    normalise: Literal["token", "sentence"] = "token"
    """Divide the summed loss by target tokens, or (the paper) by sentences."""
    label_smoothing: float = 0.0
    seed: int = 101
    eval_every: int = 100
    """Steps between validations; each keeps the best prefix so far."""
    eval_batches: int | None = None
    """Validation batches read each time; None: the whole split."""
    samples: int = 3
    """Validation sources written out as text at each evaluation."""
    checkpoint_every: int = 100
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self):
        for name, least in (
            ("steps", 0),
            ("batch_size", 1),
            ("accumulate", 1),
            ("eval_every", 1),
            ("checkpoint_every", 1),
            ("log_every", 1),
            ("samples", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(
                    f"train.{name} is {getattr(self, name)}; "
                    f"it must be at least {least}"
                )
        if self.eval_batches is not None and self.eval_batches < 1:
            raise InputError(
                f"train.eval_batches is {self.eval_batches}; it must be at least 1, "
                "or None for the whole split"
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"train.label_smoothing is {self.label_smoothing}; expected 0 <= s < 1"
            )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"train.batch_size {self.batch_size} is not a multiple of "
                f"train.accumulate {self.accumulate}"
            )


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How text is generated."""

    method: Literal["greedy"] = "greedy"
    max_new_tokens: int = 100
    batch_size: int = 32
    """Prompts decoded at a time."""

    def __post_init__(self):
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"decode.{name} is {getattr(self, name)}; it must be at least 1"
                )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices."""

    data: int | None = None
    """Devices the batch is split over; None: all there are."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    backbone: BackboneConfig = BackboneConfig()
    prefix: PrefixConfig = PrefixConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()
    mesh: MeshConfig = MeshConfig()

    def resolved(self) -> "Config":
        """The same run with every value that depends on others filled in."""
        if self.optim.learning_rate is not None:
            return self
        flat = self.train.method == "prefix" and self.prefix.kind == "flat"
        rate = 0.1 if flat else 1e-3
        return dataclasses.replace(
            self, optim=dataclasses.replace(self.optim, learning_rate=rate)
        )

    def to_dict(self) -> dict:
        """Nested plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """The inverse of `to_dict`; fields that are not there take their defaults.

        Raises InputError for a section or field that does not exist.
        """
        sections = [field.name for field in dataclasses.fields(cls)]
        made = {}
        for name, fields in values.items():
            if name not in sections:
                raise InputError(
                    f"unknown section {name!r}; expected {', '.join(sections)}"
                )
            kind = type(getattr(cls, name))
            known = {field.name for field in dataclasses.fields(kind)}
            if unknown := set(fields) - known:
                raise InputError(
                    f"unknown field {name}.{min(unknown)}; "
                    f"expected {', '.join(sorted(known))}"
                )
            # JSON has no tuples.
            made[name] = kind(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            )
        return cls(**made)
