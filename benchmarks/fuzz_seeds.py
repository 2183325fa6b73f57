"""Small valid files for each reader that `fuzz_targets.py` names."""

import contextlib
import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from prefix_jax.config import Config
from prefix_jax.model.families import random_backbone
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.kv import KV
from prefix_jax.model.llama_config import LlamaConfig
from prefix_jax.model.rope import Rope
from prefix_jax.model.weights import save_backbone
from prefix_jax.storage.artifact import save_prefix

Files = tuple[bytes, ...]
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


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


# --- data ---------------------------------------------------------------------------


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


def archive() -> list[Files]:
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


@functools.cache
def backbone() -> GPT2:
    return GPT2(SHAPE, key=jax.random.key(0))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "made"


def backbone_files() -> list[Files]:
    names, found = ("config.json", "model.safetensors"), []
    for made in (backbone(), random_backbone(LLAMA, key=jax.random.key(0))):
        with scratch() as folder:
            save_backbone(folder, made)
            found.append(tuple((folder / name).read_bytes() for name in names))
    return found


def gguf_files() -> list[Files]:
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


def _arrays() -> dict[str, np.ndarray]:
    return {"a": np.ones((2, 3), np.float32), "b": np.ones(3, np.float16)}


def safetensors() -> list[Files]:
    return [(save(_arrays(), {"format": "pt"}),), (save({}),)]


def shards() -> list[Files]:
    whole = save({"a": np.ones(2, np.float32)}), save({"b": np.ones(2, np.float32)})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    return [(dump({"metadata": {"total_size": 16}, **index}), *whole)]


def pickles() -> list[Files]:
    import torch

    made = []
    values = {"a": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(values, buffer, _use_new_zipfile_serialization=zipped)
        made.append((buffer.getvalue(),))
    return made


ADAPTER = (
    "adapter_config.json",
    "prefix_jax.json",
    "adapter_model.safetensors",
    "prefix_jax.safetensors",
)


def adapters() -> list[Files]:
    shape = (SHAPE.n_layer, 1, 3, SHAPE.n_head, SHAPE.head_width)
    made = []
    for mode in ("shifted", "unshifted"):
        kv = KV(jnp.ones(shape), jnp.ones(shape), position_mode=mode)
        with scratch() as folder:
            save_prefix(folder, kv, backbone=backbone(), task="table_to_text")
            files = []
            for name in ADAPTER:
                path = folder / name
                files.append(path.read_bytes() if path.is_file() else b"{}")
            made.append(tuple(files))
            made.append((files[0], b'{"format": 1, "kind": "prefix"}', *files[2:]))
    return made


def foreign() -> list[Files]:
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
        (dump({"peft_type": kind, **peft}), save({"prompt_embeddings": ones(shape)}))
        for kind, shape in (
            ("PREFIX_TUNING", (3, columns)),
            ("PROMPT_TUNING", (3, d)),
        )
    ] + [
        (dump(hub), save({f"x.{name}": value for name, value in network.items()})),
        (dump(hub), save({"x.control_trans": ones(3 * columns)})),
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


def record() -> bytes:
    call = {"versions": {"jax": "0"}, "devices": ["cpu"]}
    return dump(
        {
            "config": Config().resolved().to_dict(),
            "fingerprints": {"backbone": "0" * 16},
            "calls": [call],
        }
    )
