"""What a run prepares before its first step."""

import numpy as np
import pytest

from prefix_jax.config import Config, MeshConfig, TrainConfig
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError
from prefix_jax.mesh import make_mesh
from prefix_jax.model.weights import fingerprint
from prefix_jax.runs.prepare import Setup, prepare


@pytest.fixture
def rows(backbone, tokenizer, tmp_path):
    """Rows of a split of a small text, in language modelling."""
    text = "".join(f"mill {number} by the river\n" for number in range(60))
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(text)

    def rows(split: str, limit: int | None = None, seed: int = 1, first=None):
        config = Config(
            data=DataConfig(
                task="language_modelling",
                path=str(tmp_path),
                max_length=16,
                limit=limit,
            ),
            train=TrainConfig(seed=seed),
        )
        mesh = make_mesh(MeshConfig(data=1))
        setup = Setup(config, backbone, tokenizer, mesh, fingerprint(backbone))
        return [tuple(row.tokens) for row in setup.rows(split, limit=first).rows]

    return rows


@pytest.mark.parametrize("split", ["validation", "test"])
def test_limit_leaves_held_out_text_whole(rows, split):
    assert rows(split, limit=3) == rows(split)


def test_limit_takes_packed_rows_of_the_seeded_permutation(rows):
    whole = rows("train")
    order = np.random.default_rng(1).permutation(len(whole))
    assert rows("train", limit=3) == [whole[number] for number in order[:3]]
    assert rows("train", limit=3, seed=2) != rows("train", limit=3)


def test_the_first_packed_rows(rows):
    assert rows("test", first=2) == rows("test")[:2]
    assert rows("train", limit=3, first=2) == rows("train", limit=3)[:2]


@pytest.mark.parametrize(("rows", "devices"), [(8, 8), (10, 5), (12, 6), (7, 7)])
def test_a_batch_goes_to_as_many_devices_as_share_it_evenly(rows, devices):
    assert make_mesh(batch_size=rows).size == devices
    config = Config(train=TrainConfig(batch_size=2 * rows, accumulate=2))
    assert prepare(config).mesh.size == devices
    with pytest.raises(InputError, match="cannot be split over 3 devices"):
        make_mesh(MeshConfig(data=3), batch_size=10)
