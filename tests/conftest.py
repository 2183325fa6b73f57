"""Fixtures that several test modules share."""

import gc
import importlib.metadata
import os
import tempfile
from pathlib import Path

# Read when jax starts, here and in the processes that tests start: two thirds of the
# tests' time were LLVM's optimisations of programs that run for milliseconds.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # This emitter of fused loops takes as long again to compile. Later versions of XLA
    # have no other, and end the process at a flag that they do not know.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Threads for the eight devices: as many as cores are fewer than the collectives that
# wait for one another at a time, which on a busy machine is for ever.
os.environ.setdefault("NPROC", "32")

# With libtpu installed, jax would look for a TPU in every process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# One cache of compiled programs for all test processes of this run: the same small
# programs are compiled again and again, by each call of `train` for instance.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="prefix_jax_programs_")  # until the end
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
import tokenizers
from families import make
from folders import random_backbone
from transformers import PreTrainedTokenizerFast

from prefix_jax.model.backbone import Backbone
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.loading import END
from prefix_jax.model.weights import save_backbone

# Before jax makes its devices: eight, so that sharding is tested on any machine.
jax.config.update("jax_num_cpu_devices", 8)

REPOSITORY = Path(__file__).parents[1]
BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs live for one test module.

    Each maps some twenty pieces of memory, and the kernel allows a process 65,530: the
    whole suite in one process would end in LLVM's "unable to allocate section memory".

    What was left to the garbage collector goes with them: an exception that nobody
    fetched is logged when it is collected, and its traceback parses source, which
    Python 3.11 does not survive in the middle of parsing other source.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 entries in GPT-2's manner, trained on a few sentences."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "The mill by the river is old. name : Blue Spice | area : riverside\n"
    bpe.train_from_iterator([text] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public data sets beside the repository; the test skips without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}")
    return folder


@pytest.fixture(scope="session")
def backbone(request) -> Backbone:
    """Random, of 3 layers, for the `tokenizer`, with logits worth comparing.

    A GPT-2, or with `each_family` one after the other of every family.
    """
    return make(getattr(request, "param", "gpt2"))


@pytest.fixture(scope="session")
def model_folder(backbone, tokenizer, tmp_path_factory) -> Path:
    """The random backbone and its tokenizer as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    save_backbone(folder, backbone)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small() -> GPT2:
    """A backbone of a few numbers, no two of which are alike."""
    return random_backbone()


@pytest.fixture
def folder(tmp_path, small) -> Path:
    """The files of `small`, for the tests to spoil."""
    folder = tmp_path / "model"
    save_backbone(folder, small)
    return folder


@pytest.fixture
def e2e(tmp_path) -> str:
    """E2E's files with a handful of examples."""
    features = "name[Blue Spice], area[riverside]"
    folder = tmp_path / "e2e"
    folder.mkdir()
    for name in ("trainset", "devset", "testset_w_refs"):
        lines = [f'"{features}",Blue Spice no. {i} is by the river.' for i in range(9)]
        (folder / f"{name}.csv").write_text("\n".join(["mr,ref", *lines, ""]))
    return str(folder)
