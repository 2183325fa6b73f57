"""What every run needs before its first step: model, tokenizer, devices, rows."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from transformers import PreTrainedTokenizerFast

from prefix_jax.config import BackboneConfig, Config, Dtype
from prefix_jax.data.batches import Batch, choose_buckets, train_batches
from prefix_jax.data.bins import Bins, packed_batches
from prefix_jax.data.packing import pack_documents, packed_rows
from prefix_jax.data.sources import check_place
from prefix_jax.data.tasks import (
    Example,
    first_of_each,
    limit_examples,
    load_documents,
    load_examples,
)
from prefix_jax.data.tokens import (
    Row,
    check_vocabulary,
    encode_examples,
    end_token,
    text_room,
)
from prefix_jax.data_config import DataConfig, Split
from prefix_jax.distributed import check_alike
from prefix_jax.errors import InputError
from prefix_jax.learning.split import Params, folded
from prefix_jax.mesh import check_heads, make_mesh, put
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.families import random_backbone
from prefix_jax.model.flash import fuses
from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_backbone, load_config, load_tokenizer
from prefix_jax.model.passes import How
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.weights import fingerprint
from prefix_jax.runs.prefixes import prefix_folder
from prefix_jax.storage.artifact import load_embeddings, load_prefix


@dataclasses.dataclass(frozen=True)
class Rows:
    """A split as rows of tokens."""

    rows: Sequence[Row]
    examples: Sequence[Example]
    """What the rows are of, without what was dropped; () in language modelling."""
    report: str
    """How many rows and tokens there are, and what was cut or dropped."""
    buckets: tuple[int, ...]
    """Lengths that rows are padded to."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """The number of rows, and a hash of their tokens and loss masks."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(b"%d " % len(row.tokens))
            digest.update(row.tokens.tobytes() + row.loss_mask.tobytes())
        return f"{len(self.rows)} rows, {digest.hexdigest()[:16]}"


@dataclasses.dataclass(frozen=True)
class Setup:
    """The fixed parts of a run."""

    config: Config
    backbone: Backbone
    tokenizer: PreTrainedTokenizerFast
    mesh: Mesh
    fingerprint: str
    """Identifies the backbone's configuration and weights."""
    _examples: dict[tuple, list[Example]] = dataclasses.field(
        default_factory=dict, repr=False
    )
    _rows: dict[tuple, Rows] = dataclasses.field(default_factory=dict, repr=False)
    """Those that were asked for, by all that they depend on; shared by all setups `of`
    this one. So are the examples."""

    def of(self, config: Config) -> "Setup":
        """Another run; only what its recipe wants otherwise is loaded anew.

        A recipe of another backbone or other devices shares nothing.
        """
        config = config.resolved()
        if _foundation(config) != _foundation(self.config):
            return prepare(config)
        return dataclasses.replace(self, config=config)

    @property
    def pad_id(self) -> int:
        """Any token would do: padding is masked."""
        return end_token(self.tokenizer)

    def rows(
        self, split: Split, prefixes: Sequence[str] = (), limit: int | None = None
    ) -> Rows:
        """The rows of a split, with the count of what was cut or dropped.

        `prefixes`: names that rows may have in the column `data.prefix_column`.
        `limit`: only the first so many sources (of each prefix) with all of their
        references; in language modelling the first so many packed rows.
        """
        data, train = self.config.data, self.config.train
        size = {"train": data.limit, "validation": data.validation_limit}.get(split)
        seed = train.seed if data.subsample_seed is None else data.subsample_seed
        whole = split, tuple(prefixes), _unlimited(data)
        asked = *whole, train.batch_size, size, size and seed, limit
        if asked not in self._rows:
            if data.task == "language_modelling":
                rows = self._packed(split, size, seed, limit)
            else:
                if whole not in self._examples:
                    self._examples[whole] = load_examples(data, split, prefixes)
                examples = limit_examples(self._examples[whole], size, seed=seed)
                rows = self._encoded(first_of_each(examples, limit))
            check_vocabulary(
                rows.rows,
                self.tokenizer,
                self.backbone.config.vocab_size,
                self.config.backbone.name,
            )
            self._rows[asked] = rows
        return self._rows[asked]

    def _encoded(self, examples: Sequence[Example]) -> Rows:
        config = self.config
        encoded = encode_examples(examples, self.tokenizer, config.data)
        buckets = config.data.buckets or choose_buckets(
            [len(row.tokens) for row in encoded.rows],
            batch_size=config.train.batch_size,
            room=config.data.max_length,
        )
        return Rows(encoded.rows, encoded.examples, str(encoded.report), buckets)

    def _packed(
        self, split: Split, size: int | None, seed: int, limit: int | None
    ) -> Rows:
        config = self.config.data
        tokens = pack_documents(
            load_documents(config, split), self.tokenizer, config.max_length
        )
        rows = limit_examples(packed_rows(tokens), size, seed=seed)[:limit]
        report = f"{len(rows):,} packed rows of {config.max_length} tokens"
        return Rows(rows, (), report, (config.max_length,))

    def bins(self, rows: Rows) -> Bins | None:
        """How rows are packed, if that is asked for."""
        length = self.config.data.pack
        lengths = np.array([len(row.tokens) for row in rows.rows])
        return Bins(lengths, length, self.config.train.seed) if length else None

    def train_batches(
        self, rows: Rows, bins: Bins | None
    ) -> grain.DatasetIterator[Batch]:
        """This process's share of endless batches of `rows`."""
        config = self.config
        how = {
            "batch_size": config.train.batch_size,
            "seed": config.train.seed,
            "pad_id": self.pad_id,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        if bins is not None:
            return packed_batches(rows.rows, bins, **how)
        return train_batches(rows.rows, buckets=rows.buckets, **how)

    def initial_params(self, train: Rows) -> Params:
        """The parameter tree at step 0; a prefix is in it only if it is trained.

        Raises InputError where prefix and rows do not fit the backbone's positions.
        """
        config = self.config
        self._check_task()
        params: Params = {"backbone": self.backbone}
        if config.train.method == "prefix":
            prefix = init_prefix(
                self.backbone,
                config.prefix,
                key=jax.random.key(config.train.seed),
                tokenizer=self.tokenizer,
                examples=self._start_examples(train),
                start=self._start_prefix(),
            )
            params["prefix"] = prefix
        kv = folded(params)
        if kv is not None:
            after = jnp.ones((1, 1), bool) if kv.placement == "infix" else None
            kv.check_fit(self.backbone.config, 1, after)
        text_room(
            config.data.max_length,
            positions=self.backbone.config.n_positions,
            prefix_length=0 if kv is None else kv.position_offset,
            backbone=config.backbone.name,
        )
        return params

    def _check_task(self) -> None:
        """InputError for an infix where nothing comes before it."""
        config = self.config
        if (
            config.train.method == "prefix"
            and config.prefix.placement == "infix"
            and config.data.task == "language_modelling"
        ):
            raise InputError(
                'prefix.placement is "infix" but data.task is "language_modelling", '
                "which has no source that an infix could come after; use placement "
                '"prefix"'
            )

    def _start_prefix(self) -> KV | Float[jax.Array, "P D"] | None:
        config = self.config.prefix
        if config.init != "prefix":
            return None
        folder = prefix_folder(config.start)
        read = load_embeddings if config.kind == "embedding" else load_prefix
        return read(folder, self.backbone, backbone_fingerprint=self.fingerprint)

    def _start_examples(self, train: Rows) -> list[np.ndarray]:
        if self.config.prefix.init != "examples":
            return []
        seed, number = self.config.train.seed, self.config.prefix.examples
        chosen = np.random.default_rng(seed).permutation(len(train.rows))[:number]
        return [train.rows[i].tokens for i in chosen]


class Loading(How):
    """What `load_backbone` takes besides a name."""

    dtype: Dtype


def how_to_load(config: BackboneConfig, mesh: Mesh | None) -> Loading:
    """As the recipe says, for these devices (None: for any)."""
    unroll, fused = config.unroll, config.fused
    device = None if mesh is None else mesh.devices.flat[0]
    if unroll is None:
        unroll = device is not None and device.platform == "cpu" and not config.remat
    if fused is None:
        capability = getattr(device, "compute_capability", "")
        fused = device is not None and fuses(
            device.platform, device.device_kind, capability
        )
    return {
        "dtype": config.dtype,
        "remat": config.remat,
        "remat_keeps": config.remat_keeps,
        "unroll": unroll,
        "fused": fused,
    }


def _unlimited(data: DataConfig) -> DataConfig:
    return dataclasses.replace(
        data, limit=None, validation_limit=None, subsample_seed=None
    )


def _foundation(config: Config) -> tuple[BackboneConfig, int | None, Mesh]:
    """What a backbone depends on as it lies on the devices."""
    rows = config.train.batch_size // config.train.accumulate  # at a time
    mesh = make_mesh(config.mesh, batch_size=rows)
    seed = config.train.seed if config.backbone.weights == "random" else None
    return config.backbone, seed, mesh


def _shared_settings(config: Config) -> dict[str, object]:
    """What several processes must be given alike: all but where their files lie."""
    return {
        f"{section}.{field}": value
        for section, fields in config.to_dict().items()
        for field, value in fields.items()
        if (section, field) not in (("backbone", "name"), ("data", "path"))
    }


def prepare(config: Config) -> Setup:
    """Load the backbone and its tokenizer, and lay out the devices."""
    config = config.resolved()
    check_place(config.data)  # which takes no time, unlike what follows
    _, _, mesh = _foundation(config)
    name = config.backbone.name
    how = how_to_load(config.backbone, mesh)
    if config.backbone.weights == "random":
        key = jax.random.key(config.train.seed)
        backbone = random_backbone(load_config(name), key=key, **how)
    else:
        backbone = load_backbone(name, **how)
    check_heads(config.mesh, backbone.config.kv_heads, name)
    identity = fingerprint(backbone)
    check_alike({"backbone": identity, **_shared_settings(config)})
    return Setup(
        config,
        put(backbone, mesh),
        load_tokenizer(name),
        mesh,
        identity,
    )
