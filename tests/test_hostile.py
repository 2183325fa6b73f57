"""Files of strangers: a value or one InputError, whatever is in them.

`bad_files/READER/` holds what the fuzzer (`benchmarks/fuzz.py`) found, and what has
harmed others' readers; several files of one case are parted by the fuzzer's mark.
"""

import importlib
import json
import re
import resource
import sys
import tempfile
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from states import opened, start

from prefix_jax.cli import main
from prefix_jax.config import Config
from prefix_jax.errors import InputError
from prefix_jax.model import loading
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.tensor_files import open_tensors
from prefix_jax.model.weights import save_backbone
from prefix_jax.runs.record import write_record
from prefix_jax.storage.log import MetricsLog

BAD_FILES = Path(__file__).parent / "bad_files"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
QUICK = settings(max_examples=50, deadline=None, derandomize=True)
CASES = sorted(path for path in BAD_FILES.glob("*/*"))


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """Without the tests' own type checker, which would be there before the check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def targets():
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    yield importlib.import_module("fuzz_targets").TARGETS
    sys.path.remove(str(REPOSITORY / "benchmarks"))


@pytest.mark.parametrize("example", ["a text", ("a source", "a target"), [0.5]])
def test_examples_are_token_ids(small, example):
    with pytest.raises(InputError, match=r"examples\[0\] is .* expected token ids"):
        init_prefix(small, key=jax.random.key(0), examples=[example])


@pytest.mark.parametrize(
    "path", CASES, ids=lambda path: str(path.relative_to(BAD_FILES))
)
def test_a_bad_file_is_an_input_error(path, targets, tmp_path):
    """With the place: the file or the folder that was given."""
    pytest.importorskip("torch")
    target = targets[path.parent.name]
    target.write(tmp_path, path.read_bytes())
    with pytest.raises(InputError) as caught:
        target.read(tmp_path)
    # Overrides are words of a command line, and have no place.
    assert target.names == ("values.json",) or str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_what_the_fuzzer_begins_with_is_valid(targets, tmp_path):
    pytest.importorskip("torch")
    mark = importlib.import_module("fuzz_targets").MARK
    for name, target in targets.items():
        for number, seed in enumerate(target.seeds()):
            folder = tmp_path / f"{name}{number}"
            target.write(folder, mark.join(seed))
            try:
                target.read(folder)
            except InputError as error:
                assert b"ENTITY" in seed[0] or number, f"{name}: {error}"


# --- secrets and code ---------------------------------------------------------------

SECRET = "hf_" + "s3cr3t" * 5


def test_no_token_is_written_down(tmp_path, monkeypatch, capsys):
    """Neither in a run's record nor in what is said where the hub refuses."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    write_record(Config(), {"data": "0"}, tmp_path)
    with MetricsLog(tmp_path) as log:
        log.write(1, "train", {"loss": 1.0})
    asked = []

    def refuse(*_, **given):
        asked.append(given)
        raise OSError("401 Client Error: Unauthorized")

    monkeypatch.setattr(loading, "snapshot_download", refuse)
    with pytest.raises(SystemExit):
        main(["generate", "--backbone", "some/gpt2", "--prompt", "a"])
    with pytest.raises(InputError) as caught:
        loading.load_backbone("some/gpt2")
    said = [str(caught.value), *capsys.readouterr(), str(asked)]
    said += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert asked and not any(SECRET in text for text in said)


def test_the_code_that_a_folder_names_is_not_run(tmp_path, tokenizer, backbone):
    """`auto_map` and classes of a hub's folder, which transformers would import."""
    save_backbone(tmp_path, backbone)
    tokenizer.save_pretrained(tmp_path)
    code = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    (tmp_path / "evil.py").write_text(code + "class Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        path = tmp_path / name
        evil = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        evil["auto_map"] |= {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
        evil |= {"tokenizer_class": "Evil", "tokenizer_file": "/etc/passwd"}
        path.write_text(json.dumps({**json.loads(path.read_text()), **evil}))
    loading.load_backbone(tmp_path)
    assert loading.load_tokenizer(tmp_path).encode("The mill")
    assert not (tmp_path / "ran").exists()


def test_nothing_asks_for_the_code_of_a_hub():
    package = Path(loading.__file__).parents[1]
    texts = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    assert not any("trust_remote_code" in text for text in texts)
    # `weights_only=True` stands beside the only one.
    assert sum(text.count("torch.load(") for text in texts) == 1
    assert not any(re.search(r"pickle\.loads?\(|\beval\(", text) for text in texts)


def test_a_message_does_not_command_the_terminal(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("source,\x1b[2Jname\na,b\n")
    (tmp_path / "r.py").write_text(
        "from prefix_jax.config import *\nfrom prefix_jax.data_config import *\n"
        f"config = Config(data=DataConfig(path={str(tmp_path)!r}))\n"
    )
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "r.py"), "--workdir", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert r"\x1b[2Jname" in said and "\x1b" not in said


# --- tensors ------------------------------------------------------------------------


@QUICK
@given(
    sides=st.lists(st.integers(0, 2**62), max_size=4),
    start=st.integers(0, 2**62),
    size=st.integers(0, 2**62),
    length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
@example(sides=[2**40], start=0, size=2**42, length=None)
@example(sides=[], start=0, size=4, length=2**63)
def test_a_header_that_promises_more_than_the_file_holds(sides, start, size, length):
    """It is refused before anything of that size is made."""
    about = {"dtype": "F32", "shape": sides, "data_offsets": [start, start + size]}
    header = json.dumps({"a": about}).encode()
    first = len(header) if length is None else length
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(first.to_bytes(8, "little") + header + bytes(16))
        before = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, before[1]))
        try:
            held = [stored.read_f32().nbytes for stored in open_tensors(path).values()]
            assert sum(held) <= 16
        except InputError as error:
            assert str(path) in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


NAMES = st.one_of(
    TEXT,
    st.lists(st.sampled_from(["..", ".", "/", "\\", "model", "\0"]), max_size=5).map(
        "".join
    ),
)


@QUICK
@given(name=NAMES)
def test_an_index_reads_beside_itself_only(name):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "a", "b")
        folder.mkdir(parents=True)
        for near in (Path(place), folder.parent):  # what would be found outside
            save_file({"x": np.ones(1, np.float32)}, near / "model")
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(InputError, match=re.escape(str(index))):
            open_tensors(folder)


# --- checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"format": 2}'])
def test_a_damaged_record_of_a_checkpoint(damage, tmp_path, backbone):
    state = start(backbone, length=3)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(0, state, {}, {})
    (path,) = tmp_path.rglob("meta/metadata")
    path.write_bytes(damage)
    with (
        opened(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"the checkpoint of step 0 is damaged"),
    ):
        checkpoints.restore(start(backbone, length=3))
