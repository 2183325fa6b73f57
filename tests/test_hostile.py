"""Files of strangers: a value or one InputError, whatever is in them.

`bad_files/READER/` holds what the fuzzer (`benchmarks/fuzz.py`) found, and what has
harmed others' readers; several files of one case are parted by the fuzzer's mark.
"""

import importlib
import sys
from pathlib import Path

import jaxtyping
import pytest
from conftest import REPOSITORY

from prefix_jax.errors import InputError

BAD_FILES = Path(__file__).parent / "bad_files"
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
