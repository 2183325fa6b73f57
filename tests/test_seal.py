"""Checksums of what is stored: any damage is found and named."""

import shutil
import subprocess

import numpy as np
import pytest
from kinds import make

from prefix_jax.errors import InputError
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.weights import save_backbone
from prefix_jax.seal import SUMS
from prefix_jax.storage.artifact import load_prefix, save_prefix
from prefix_jax.storage.exporting import export_prefix
from prefix_jax.storage.files import replaced


@pytest.fixture(scope="module")
def folder(tmp_path_factory, backbone):
    """A stored prefix."""
    folder = tmp_path_factory.mktemp("stored") / "p"
    save_prefix(folder, make(backbone), backbone=backbone)
    return folder


def harmed(path, rng, how):
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    else:
        content = content[: rng.integers(len(content))]
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_any_damage_of_a_prefix_is_named(tmp_path, folder, backbone, how):
    """A few bits and ends of each file, the checksums among them."""
    rng = np.random.default_rng(0)
    for name in sorted(path.name for path in folder.iterdir()):
        for _ in range(8):
            shutil.copytree(folder, tmp_path / "p", dirs_exist_ok=True)
            harmed(tmp_path / "p" / name, rng, how)
            with pytest.raises(InputError, match=r"damaged or changed after it was sa"):
                load_prefix(tmp_path / "p", backbone)


def test_a_missing_file_is_named_and_one_that_came_later_does_no_harm(
    tmp_path, folder, backbone
):
    shutil.copytree(folder, tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("mine")
    load_prefix(tmp_path / "p", backbone)
    (tmp_path / "p" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config.json is missing"):
        load_prefix(tmp_path / "p", backbone)


def test_who_changes_a_file_can_say_so(tmp_path, folder, backbone):
    shutil.copytree(folder, tmp_path / "p")
    path = tmp_path / "p" / "adapter_config.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match=f"if you changed it yourself, remove {SUMS}"):
        load_prefix(tmp_path / "p", backbone)
    (tmp_path / "p" / SUMS).unlink()
    load_prefix(tmp_path / "p", backbone)


def test_the_card_of_an_export_is_free_to_be_edited(tmp_path, folder, backbone):
    export_prefix(folder, tmp_path / "out", base_model="me/mine")
    (tmp_path / "out" / "README.md").write_text("# My prefix\n")
    load_prefix(tmp_path / "out", backbone)


def test_a_tuned_backbone_is_sealed_too(tmp_path, backbone):
    with replaced(tmp_path / "best") as fresh:
        save_backbone(fresh, backbone)
    load_backbone(tmp_path / "best")
    harmed(tmp_path / "best" / "model.safetensors", np.random.default_rng(0), "flip")
    with pytest.raises(InputError, match=r"model.safetensors is not what was written"):
        load_backbone(tmp_path / "best")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_reads_the_checksums(folder):
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True)
