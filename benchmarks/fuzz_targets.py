"""The readers that `fuzz.py` tries, each with small valid files to begin with."""

import contextlib
import dataclasses
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import fuzz_seeds as seeds

from prefix_jax.config import Config
from prefix_jax.data.tasks import load_documents, load_examples
from prefix_jax.data_config import DataConfig
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.model.tensor_files import open_tensors, read_json
from prefix_jax.runs.folders import find_runs
from prefix_jax.runs.prompts import read_prompts
from prefix_jax.runs.record import recorded_config
from prefix_jax.runs.report import render
from prefix_jax.storage.artifact import load_prefix
from prefix_jax.storage.importing import find_prefix
from prefix_jax.storage.log import read_metrics
from prefix_jax.storage.metadata import read_metadata, read_shape

MARK = b"\n%%%%\n"
"""Between the files of one case."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader of the files of these names in a folder."""

    names: Sequence[str]
    read: Callable[[Path], object]
    seeds: Callable[[], Sequence[seeds.Files]]
    """Valid ones, in the order of the names."""
    warm: Callable[[], object] = lambda: None
    """Called once, before the memory is bounded."""

    def write(self, folder: Path, case: bytes) -> None:
        """The files of a case; those that it lacks are not there."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in zip(self.names, case.split(MARK), strict=False):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(part)


def _examples(source: str, split: str = "train") -> Callable[[Path], object]:
    """Reads a split as training does, and as validation does."""

    def read(folder: Path) -> object:
        config = DataConfig(
            source=source, path=str(folder), train=split, validation=split
        )
        return load_examples(config, "train"), load_examples(config, "validation")

    return read


def _documents(folder: Path) -> object:
    config = DataConfig(task="language_modelling", path=str(folder))
    return list(load_documents(config, "train"))


def _zipped(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Reads the file as it is, which is damaged, and gzipped by us, which is not."""

    def both(folder: Path) -> object:
        path = folder / name
        whole = gzip.compress(path.read_bytes(), 1)
        path.rename(path.with_name(f"{name}.gz"))
        with contextlib.suppress(ValueError):
            read(folder)
        path.with_name(f"{name}.gz").write_bytes(whole)
        return read(folder)

    return both


def _tarred(folder: Path) -> object:
    """The archive gzipped by us."""
    path = folder / "webnlg.tar"
    (folder / "webnlg.tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    return _examples("webnlg", "validation")(folder)


# --- models -------------------------------------------------------------------------


def _tokenizer(folder: Path) -> object:
    return load_tokenizer(folder).encode("ab a")


def _tensors(folder: Path) -> object:
    return [one.read_f32() for one in open_tensors(folder).values() if _is_float(one)]


def _is_float(stored) -> bool:
    return stored.dtype in ("F64", "F32", "F16", "BF16")


def _adapter(folder: Path) -> object:
    read_shape(folder, read_metadata(folder))
    return load_prefix(folder, seeds.backbone())


def _report(folder: Path) -> object:
    runs = find_runs([str(folder)])
    return render(runs, [], samples=2, looked=False, command="")


def _overrides(folder: Path) -> object:
    return Config().replaced(read_json(folder / "values.json"))


RUN = (
    "config.json",
    "metrics.jsonl",
    "scores_test_best.json",
    "outputs_test_best.jsonl",
    "checkpoints/2/meta/metadata",
)

TARGETS = {
    "config": Target(
        ("config.json",),
        recorded_config,
        lambda: [(seeds.record(),), (b'{"config": {}}',)],
    ),
    "overrides": Target(
        ("values.json",),
        _overrides,
        lambda: [
            (
                seeds.dump(
                    {"prefix.length": 3, "train.steps": 4, "prefix.init": "zeros"}
                ),
            )
        ],
    ),
    "jsonl": Target(("train.jsonl",), _examples("files"), lambda: seeds.JSONL),
    "csv": Target(("train.csv",), _examples("files"), lambda: seeds.CSV),
    "tsv": Target(("train.tsv",), _examples("files"), lambda: seeds.TSV),
    "text": Target(("train.txt",), _documents, lambda: seeds.TEXT),
    "gzip": Target(
        ("train.csv",),
        _zipped("train.csv", _examples("files")),
        lambda: seeds.CSV + seeds.E2E,
    ),
    "prompts": Target(
        ("x.jsonl",),
        lambda folder: read_prompts(folder / "x.jsonl"),
        lambda: [(b'{"prompt": "a", "prefix": "b", "seed": 3}\n',)],
    ),
    "e2e": Target(("trainset.csv",), _examples("e2e"), lambda: seeds.E2E),
    "webnlg": Target(
        ("dev/a.xml",),
        _examples("webnlg", "validation"),
        lambda: [(seeds.XML,), (seeds.ENTITIES,)],
    ),
    "webnlg_archive": Target(
        ("webnlg.tar",),
        _tarred,
        seeds.archive,
    ),
    "dart": Target(
        ("dart-v1.1.1-full-train.json",), _examples("dart"), lambda: seeds.DART
    ),
    "tokenizer": Target(
        ("tokenizer.json", "tokenizer_config.json"),
        _tokenizer,
        lambda: [
            (seeds.dump(seeds.TOKENIZER), seeds.dump(seeds.TOKENIZER_CONFIG)),
            (seeds.dump(seeds.TOKENIZER), b"{}"),
        ],
    ),
    "older_tokenizer": Target(
        ("vocab.json", "merges.txt"),
        _tokenizer,
        lambda: [
            (seeds.dump(seeds.TOKENIZER["model"]["vocab"]), b"#version: 0.2\na b\n")
        ],
    ),
    "safetensors": Target(("model.safetensors",), _tensors, seeds.safetensors),
    "index": Target(
        ("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"),
        _tensors,
        seeds.shards,
    ),
    "pickle": Target(
        ("pytorch_model.bin",), _tensors, seeds.pickles, warm=seeds.pickles
    ),
    "backbone": Target(
        ("config.json", "model.safetensors"),
        load_backbone,
        seeds.backbone_files,
        warm=seeds.backbone_files,
    ),
    "gguf": Target(
        ("model.gguf",),
        lambda folder: load_backbone(folder / "model.gguf"),
        seeds.gguf_files,
        warm=seeds.backbone,
    ),
    "gguf_tokenizer": Target(
        ("model.gguf",),
        lambda folder: load_tokenizer(folder / "model.gguf"),
        seeds.gguf_files,
    ),
    "adapter": Target(seeds.ADAPTER, _adapter, seeds.adapters, warm=seeds.adapters),
    "importing": Target(
        ("adapter_config.json", "adapter_model.safetensors"),
        lambda folder: find_prefix(folder, seeds.backbone()),
        seeds.foreign,
        warm=seeds.backbone,
    ),
    "metrics": Target(("metrics.jsonl",), read_metrics, lambda: [(seeds.METRICS,)]),
    "report": Target(
        RUN,
        _report,
        lambda: [
            (
                seeds.record(),
                seeds.METRICS,
                seeds.dump(seeds.SCORES),
                seeds.OUTPUTS,
                seeds.dump(seeds.ARRAYS),
            )
        ],
    ),
    "comparison": Target(
        ("comparison.json", "prefix/config.json"),
        _report,
        lambda: [
            (seeds.dump([seeds.ROW, {**seeds.ROW, "method": "none"}]), seeds.record())
        ],
    ),
}
