"""The readers that `fuzz.py` tries, each with small valid files to begin with."""

import contextlib
import dataclasses
import functools
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from prefix_jax.config import Config
from prefix_jax.data.tasks import load_documents, load_examples
from prefix_jax.data_config import DataConfig
from prefix_jax.model.families import random_backbone
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.kv import KV
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.model.rope import Rope
from prefix_jax.model.tensor_files import open_tensors, read_json
from prefix_jax.model.weights import save_backbone
from prefix_jax.runs.folders import find_runs
from prefix_jax.runs.prompts import read_prompts
from prefix_jax.runs.record import recorded_config
from prefix_jax.runs.report import render
from prefix_jax.storage.artifact import load_prefix, save_prefix
from prefix_jax.storage.importing import find_prefix
from prefix_jax.storage.log import read_metrics
from prefix_jax.storage.metadata import read_metadata, read_shape

Files = tuple[bytes, ...]
MARK = b"\n%%%%\n"
"""Between the files of one case."""

SHAPE = GPT2Config(vocab_size=5, n_positions=8, n_embd=4, n_layer=2, n_head=2)
LLAMA = LlamaConfig(
    vocab_size=5,
    n_positions=8,
    n_embd=4,
    n_inner=4,
    n_layer=1,
    n_head=2,
    num_key_value_heads=1,
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader of the files of these names in a folder."""

    names: Sequence[str]
    read: Callable[[Path], object]
    seeds: Callable[[], Sequence[Files]]
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


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


# --- data ---------------------------------------------------------------------------


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


JSONL = [
    (b'{"source": "a", "target": "b"}\n{"source": "c", "target": ["d", "e"]}\n',),
    (b'{"source": "a", "references": ["x", "y"]}',),
]
CSV = [(b'source,target\r\n"a ""b"", c",d\r\n"e\nf",g\r\n',), (b"source,target\na,b",)]
TSV = [(b"source\ttarget\na\tb\n",), (b'target\tsource\n"a\tb\n',)]
TEXT = [(b"one\ntwo\n\nthree",), (b"a\n<|endoftext|>\nb\n<|endoftext|>\n",)]
E2E = [(b'mr,ref\n"name[Blue Spice], area[city centre]",Blue Spice is central.\n',)]
XML = b"""<benchmark><entries>
<entry category="Airport" eid="Id1" size="1">
<originaltripleset><otriple>A | b | C</otriple></originaltripleset>
<modifiedtripleset><mtriple>A_B | city | C</mtriple></modifiedtripleset>
<lex comment="good" lid="Id1">A &amp; B is in C.</lex>
</entry></entries></benchmark>
"""
ENTITIES = b"""<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE benchmark [<!ENTITY a "A | b | C"><!ENTITY x SYSTEM "file:///etc/passwd">]>
<benchmark><entries><entry category="City"><mtriple>&a;</mtriple>
<lex comment="good">&x;</lex></entry></entries></benchmark>
"""
DART = [
    (
        b'[{"tripleset": [["a", "B", "c"]], "annotations": [{"text": "A b c."}]},\n'
        b' {"tripleset": [["a", "B", "c"]], "annotations": [{"text": "\\u00e9"}]}]',
    )
]


def _archive() -> list[Files]:
    """One of files; one with links, a folder and a sparse name."""
    made = []
    for hostile in (False, True):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo("dev/1triples/a.xml")
            member.size = len(XML)
            archive.addfile(member, io.BytesIO(XML))
            for name, kind in (
                ("dev/link.xml", tarfile.SYMTYPE),
                ("dev/hard.xml", tarfile.LNKTYPE),
                ("dev/folder.xml", tarfile.DIRTYPE),
                ("dev/sparse.xml", tarfile.GNUTYPE_SPARSE),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "../../etc/passwd"
                if hostile:
                    archive.addfile(member)
        made.append((buffer.getvalue().rstrip(b"\0") + b"\0" * 1024,))
    return made


def _tarred(folder: Path) -> object:
    """The archive gzipped by us."""
    path = folder / "webnlg.tar"
    (folder / "webnlg.tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    return _examples("webnlg", "validation")(folder)


# --- models -------------------------------------------------------------------------


@functools.cache
def _backbone() -> GPT2:
    return GPT2(SHAPE, key=jax.random.key(0))


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "made"


def _backbone_files() -> list[Files]:
    names, found = ("config.json", "model.safetensors"), []
    for made in (_backbone(), random_backbone(LLAMA, key=jax.random.key(0))):
        with _scratch() as folder:
            save_backbone(folder, made)
            found.append(tuple((folder / name).read_bytes() for name in names))
    return found


def _gguf() -> list[Files]:
    """A model of one layer, a list and a tensor of blocks in it, and its tokenizer.

    Once with the frequencies of a Llama 3, too.
    """
    plain, _ = Rope().inv_freq(16)
    stretched, _ = Rope(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ).inv_freq(16)
    return [_gguf_with({}), _gguf_with({"rope_freqs.weight": plain / stretched})]


def _gguf_with(more: dict[str, np.ndarray]) -> Files:
    import gguf

    width, kinds = 32, gguf.GGMLQuantizationType
    shapes = {
        "attn_q": (width, width),
        "attn_k": (16, width),
        "attn_v": (16, width),
        "attn_output": (width, width),
        "ffn_gate": (width, width),
        "ffn_up": (width, width),
        "ffn_down": (width, width),
        "attn_norm": (width,),
        "ffn_norm": (width,),
    }
    tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": (4, width), "output_norm.weight": (width,)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        out = gguf.GGUFWriter(path, "llama")
        out.add_block_count(1)
        out.add_context_length(8)
        out.add_embedding_length(width)
        out.add_feed_forward_length(width)
        out.add_head_count(2)
        out.add_head_count_kv(1)
        out.add_layer_norm_rms_eps(1e-5)
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("gpt-2")
        out.add_token_list(["<|endoftext|>", "a", "b", "ab"])
        out.add_token_merges(["a b"])
        out.add_bos_token_id(0)
        out.add_eos_token_id(0)
        for name, shape in tensors.items():
            kind = kinds.Q8_0 if len(shape) == 2 else kinds.F32
            array = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32)
            data = gguf.quants.quantize(array.reshape(shape), kind)
            out.add_tensor(name, data, raw_dtype=kind)
        for name, array in more.items():
            out.add_tensor(name, array)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return (path.read_bytes(),)


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 0, "content": "<|endoftext|>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated"}
            | {"invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
            | {"use_regex": True},
        ],
    },
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    | {"use_regex": True},
    "model": {
        "type": "BPE",
        "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3},
        "merges": [["a", "b"]],
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
    },
}
TOKENIZER_CONFIG = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "model_max_length": 8,
    "tokenizer_class": "GPT2Tokenizer",
    "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
    "extra_special_tokens": [],
}


def _tokenizer(folder: Path) -> object:
    return load_tokenizer(folder).encode("ab a")


def _tensors(folder: Path) -> object:
    return [one.read_f32() for one in open_tensors(folder).values() if _is_float(one)]


def _is_float(stored) -> bool:
    return stored.dtype in ("F64", "F32", "F16", "BF16")


def _arrays() -> dict[str, np.ndarray]:
    return {"a": np.ones((2, 3), np.float32), "b": np.ones(3, np.float16)}


def _safetensors() -> list[Files]:
    return [(save(_arrays(), {"format": "pt"}),), (save({}),)]


def _shards() -> list[Files]:
    whole = save({"a": np.ones(2, np.float32)}), save({"b": np.ones(2, np.float32)})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    return [(_dump({"metadata": {"total_size": 16}, **index}), *whole)]


def _pickles() -> list[Files]:
    import torch

    made = []
    values = {"a": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(values, buffer, _use_new_zipfile_serialization=zipped)
        made.append((buffer.getvalue(),))
    return made


def _adapter(folder: Path) -> object:
    read_shape(folder, read_metadata(folder))
    return load_prefix(folder, _backbone())


def _adapters() -> list[Files]:
    shape = (SHAPE.n_layer, 1, 3, SHAPE.n_head, SHAPE.head_width)
    made = []
    for mode in ("shifted", "unshifted"):
        kv = KV(jnp.ones(shape), jnp.ones(shape), position_mode=mode)
        with _scratch() as folder:
            save_prefix(folder, kv, backbone=_backbone(), task="table_to_text")
            files = []
            for name in ADAPTER:
                path = folder / name
                files.append(path.read_bytes() if path.is_file() else b"{}")
            made.append(tuple(files))
            made.append((files[0], b'{"format": 1, "kind": "prefix"}', *files[2:]))
    return made


ADAPTER = (
    "adapter_config.json",
    "prefix_jax.json",
    "adapter_model.safetensors",
    "prefix_jax.safetensors",
)


def _foreign() -> list[Files]:
    """PEFT's two kinds, the paper's network, AdapterHub's flat one."""
    d, columns = SHAPE.n_embd, SHAPE.n_layer * 2 * SHAPE.n_embd
    ones = functools.partial(np.ones, dtype=np.float32)
    network = {
        "wte.weight": ones((3, d)),
        "control_trans.0.weight": ones((2, d)),
        "control_trans.0.bias": ones(2),
        "control_trans.2.weight": ones((columns, 2)),
        "control_trans.2.bias": ones(columns),
    }
    peft = {"num_virtual_tokens": 3, "num_layers": SHAPE.n_layer, "token_dim": d}
    hub = {"config": {"architecture": "prefix_tuning", "non_linearity": "tanh"}}
    return [
        (_dump({"peft_type": kind, **peft}), save({"prompt_embeddings": ones(shape)}))
        for kind, shape in (
            ("PREFIX_TUNING", (3, columns)),
            ("PROMPT_TUNING", (3, d)),
        )
    ] + [
        (_dump(hub), save({f"x.{name}": value for name, value in network.items()})),
        (_dump(hub), save({"x.control_trans": ones(3 * columns)})),
    ]


# --- runs ---------------------------------------------------------------------------

METRICS = (
    b'{"step": 1, "split": "train", "loss": 2.5, "learning_rate": 0.1}\n'
    b'{"step": 2, "split": "validation", "loss": 2.0, "perplexity": 7.4}\n'
)
SCORES = {
    "split": "test",
    "which": "best",
    "loss": 2.0,
    "perplexity": 7.4,
    "tokens": 10,
    "sources": 2,
    "cut_sources": 0,
    "scores": {"accuracy": 0.5},
    "subsets": {
        "seen": {"sources": 1, "accuracy": 1.0},
        "unseen": {"sources": 1, "accuracy": 0.0},
    },
    "classes": {"labels": ["a", "b"], "confusion": [[1, 0], [1, 0]]},
}
OUTPUTS = b'{"source": "s", "text": "t", "references": ["r"], "probabilities": [0.9]}\n'
ROW = {
    "method": "prefix",
    "trained": 48,
    "share": 0.1,
    "stored_bytes": 300,
    "learning_rate": 0.1,
    "step": 2,
    "validation_loss": 2.0,
    "seconds": 1.5,
    "scores": SCORES,
}
ARRAYS = {"arrays": {"trainable/prefix/keys": {"shape": [2, 3], "dtype": "float32"}}}


def _record() -> bytes:
    call = {"versions": {"jax": "0"}, "devices": ["cpu"]}
    return _dump(
        {
            "config": Config().resolved().to_dict(),
            "fingerprints": {"backbone": "0" * 16},
            "calls": [call],
        }
    )


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
        ("config.json",), recorded_config, lambda: [(_record(),), (b'{"config": {}}',)]
    ),
    "overrides": Target(
        ("values.json",),
        _overrides,
        lambda: [
            (_dump({"prefix.length": 3, "train.steps": 4, "prefix.init": "zeros"}),)
        ],
    ),
    "jsonl": Target(("train.jsonl",), _examples("files"), lambda: JSONL),
    "csv": Target(("train.csv",), _examples("files"), lambda: CSV),
    "tsv": Target(("train.tsv",), _examples("files"), lambda: TSV),
    "text": Target(("train.txt",), _documents, lambda: TEXT),
    "gzip": Target(
        ("train.csv",), _zipped("train.csv", _examples("files")), lambda: CSV + E2E
    ),
    "prompts": Target(
        ("x.jsonl",),
        lambda folder: read_prompts(folder / "x.jsonl"),
        lambda: [(b'{"prompt": "a", "prefix": "b", "seed": 3}\n',)],
    ),
    "e2e": Target(("trainset.csv",), _examples("e2e"), lambda: E2E),
    "webnlg": Target(
        ("dev/a.xml",),
        _examples("webnlg", "validation"),
        lambda: [(XML,), (ENTITIES,)],
    ),
    "webnlg_archive": Target(
        ("webnlg.tar",),
        _tarred,
        _archive,
    ),
    "dart": Target(("dart-v1.1.1-full-train.json",), _examples("dart"), lambda: DART),
    "tokenizer": Target(
        ("tokenizer.json", "tokenizer_config.json"),
        _tokenizer,
        lambda: [
            (_dump(TOKENIZER), _dump(TOKENIZER_CONFIG)),
            (_dump(TOKENIZER), b"{}"),
        ],
    ),
    "older_tokenizer": Target(
        ("vocab.json", "merges.txt"),
        _tokenizer,
        lambda: [(_dump(TOKENIZER["model"]["vocab"]), b"#version: 0.2\na b\n")],
    ),
    "safetensors": Target(("model.safetensors",), _tensors, _safetensors),
    "index": Target(
        ("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"),
        _tensors,
        _shards,
    ),
    "pickle": Target(("pytorch_model.bin",), _tensors, _pickles, warm=_pickles),
    "backbone": Target(
        ("config.json", "model.safetensors"),
        load_backbone,
        _backbone_files,
        warm=_backbone_files,
    ),
    "gguf": Target(
        ("model.gguf",),
        lambda folder: load_backbone(folder / "model.gguf"),
        _gguf,
        warm=_backbone,
    ),
    "gguf_tokenizer": Target(
        ("model.gguf",), lambda folder: load_tokenizer(folder / "model.gguf"), _gguf
    ),
    "adapter": Target(ADAPTER, _adapter, _adapters, warm=_adapters),
    "importing": Target(
        ("adapter_config.json", "adapter_model.safetensors"),
        lambda folder: find_prefix(folder, _backbone()),
        _foreign,
        warm=_backbone,
    ),
    "metrics": Target(("metrics.jsonl",), read_metrics, lambda: [(METRICS,)]),
    "report": Target(
        RUN,
        _report,
        lambda: [(_record(), METRICS, _dump(SCORES), OUTPUTS, _dump(ARRAYS))],
    ),
    "comparison": Target(
        ("comparison.json", "prefix/config.json"),
        _report,
        lambda: [(_dump([ROW, {**ROW, "method": "none"}]), _record())],
    ),
}
