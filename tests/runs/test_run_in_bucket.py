"""Runs whose work folder is in a bucket.

The bucket is a folder here. By hand, it was a server that speaks as Google's store does
(gcp-storage-emulator), with gcsfs and with Orbax's own client.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

import prefix_jax.storage.remote as remote_module
from prefix_jax.errors import InputError
from prefix_jax.runs.compare import compare
from prefix_jax.runs.evaluate import evaluate
from prefix_jax.runs.record import recorded_config
from prefix_jax.runs.train import train
from prefix_jax.storage.remote import at_hand, in_bucket
from runs.support import Crash, lines, quiet
from runs.test_run_resume import crash_at

RUN = Path("gs://bucket/run")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that stands for gs://bucket."""

    def path(address):
        return epath.Path(address.replace("gs:/", str(tmp_path), 1))

    monkeypatch.setattr(remote_module, "epath", SimpleNamespace(Path=path))
    return tmp_path / "bucket"


@pytest.mark.parametrize(
    ("given", "address"),
    [("gs://bucket/run", "gs://bucket/run"), ("runs/gs", None), ("gs:", None)],
)
def test_an_address_is_known_as_pathlib_leaves_it(given, address):
    assert in_bucket(Path(given)) == address


def test_what_is_no_work_folder_is_refused(config):
    with pytest.raises(InputError, match="s3://bucket/run is in no kind of store"):
        train(config, Path("s3://bucket/run"), quiet())
    with pytest.raises(InputError, match="gs://bucket/run is in a bucket, where"):
        compare(config, RUN, console=quiet())
    assert not Path("gs:").exists()


@pytest.mark.skipif(importlib.util.find_spec("gcsfs"), reason="gcsfs is installed")
def test_without_gcsfs_it_is_said_what_to_install(config):
    with pytest.raises(InputError, match=r"gs://bucket/run needs gcsfs.*prefix_jax\["):
        train(config, RUN, quiet())


def test_a_run_goes_on_from_what_the_bucket_holds(
    config, finished, bucket, monkeypatch
):
    """As on a new machine: between the calls nothing is left here."""
    crash_at(6, monkeypatch)
    with pytest.raises(Crash):
        train(config, RUN, quiet())
    folder = bucket / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "metrics.jsonl", "samples.jsonl", "best", "last"),
        "checkpoints",
    }
    assert lines(folder)[-1]["step"] == 4
    console = quiet()
    assert train(config, RUN, console).finished
    assert lines(folder) == lines(finished)
    for name in ("best", "last"):
        file = Path(name) / "adapter_model.safetensors"
        assert (folder / file).read_bytes() == (finished / file).read_bytes()
    assert (folder / "curves.png").is_file()
    told = console.file.getvalue()
    assert "going on from step 4 of" in told and "best, of step" in told


def test_it_is_scored_where_it_lies(config, finished, bucket):
    with at_hand(RUN) as place:
        for path in filter(Path.is_file, finished.rglob("*")):
            inner = path.relative_to(finished)
            if inner.parts[0] != "checkpoints":
                (place.folder / inner).parent.mkdir(exist_ok=True)
                (place.folder / inner).write_bytes(path.read_bytes())
    assert recorded_config(RUN).train == config.resolved().train
    result = evaluate(config, RUN, console=quiet())
    assert result == evaluate(config, finished, console=quiet())
    written = json.loads((bucket / "run" / "scores_test_best.json").read_text())
    assert written["loss"] == result.loss


def test_another_run_there_is_named_by_its_address(config, finished, bucket):
    (bucket / "run").mkdir(parents=True)
    record = (finished / "config.json").read_bytes()
    (bucket / "run" / "config.json").write_bytes(record)
    with pytest.raises(InputError, match=r"^gs://bucket/run holds another run"):
        train(config.replaced({"train.seed": 3}), RUN, quiet())
