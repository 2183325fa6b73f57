"""What a run prepares before its first step."""

import copy
import json

import numpy as np
import pytest

import prefix_jax.runs.prepare as prepare_module
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

    def rows(split: str, seed: int = 1, first: int | None = None, **limits: int):
        config = Config(
            data=DataConfig(
                task="language_modelling",
                path=str(tmp_path),
                max_length=16,
                **limits,
            ),
            train=TrainConfig(seed=seed),
        )
        mesh = make_mesh(MeshConfig(data=1))
        setup = Setup(config, backbone, tokenizer, mesh, fingerprint(backbone))
        return [tuple(row.tokens) for row in setup.rows(split, limit=first).rows]

    return rows


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_limit_is_of_its_own_split(rows, split):
    limits = {"train": "limit", "validation": "validation_limit"}
    for of, limit in limits.items():
        assert len(rows(split, **{limit: 3})) == (3 if of == split else 33)


@pytest.mark.parametrize(
    ("split", "limit"), [("train", "limit"), ("validation", "validation_limit")]
)
def test_limits_take_packed_rows_of_the_seeded_permutation(rows, split, limit):
    whole, few = rows(split), {limit: 3}
    order = np.random.default_rng(1).permutation(len(whole))
    assert rows(split, **few) == [whole[number] for number in order[:3]]
    assert rows(split, seed=2, **few) != rows(split, **few)
    assert rows(split, seed=2, subsample_seed=1, **few) == rows(split, **few)


def test_a_token_that_the_backbone_has_not_is_named(backbone, tokenizer, tmp_path):
    """Before anything is written: its embedding would be no number."""
    added = copy.deepcopy(tokenizer)
    added.add_tokens(["<<mill>>"])
    row = {"source": "the <<mill>>", "target": "old"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    config = Config(data=DataConfig(path=str(tmp_path), max_length=16))
    setup = Setup(config, backbone, added, make_mesh(), fingerprint(backbone))
    with pytest.raises(InputError, match=r"'<<mill>>' as token 300, but .* 0 to 299"):
        setup.rows("train")


def test_setups_share_what_their_recipes_have_in_common(tmp_path, monkeypatch):
    """And no more: each has the rows that it would have alone."""
    for split in ("train", "validation", "test"):
        lines = [{"source": f"mill {i}", "target": f"Mill {i}."} for i in range(9)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{split}.jsonl").write_text(text)
    reads = []
    load = prepare_module.load_examples
    monkeypatch.setattr(
        prepare_module, "load_examples", lambda *a: reads.append(a[1]) or load(*a)
    )

    def config(seed=1, **data):
        data = DataConfig(path=str(tmp_path), max_length=32, **data)
        train = TrainConfig(seed=seed, batch_size=4)
        return Config(data=data, train=train, mesh=MeshConfig(data=1))

    first = prepare(config())
    few = {"limit": 4, "validation_limit": 2, "subsample_seed": 3}
    recipes = [config(), config(seed=2), config(**few), config(seed=2, **few)]
    setups = [first.of(recipe) for recipe in recipes]
    for split in ("train", "validation", "test"):
        rows = [setup.rows(split) for setup in setups]
        assert rows[0] is rows[1] and rows[2] is rows[3]
        assert (rows[0] is rows[2]) == (split == "test")
        assert reads == [split]
        alone = [prepare(recipe).rows(split).fingerprint for recipe in recipes]
        assert [each.fingerprint for each in rows] == alone
        reads.clear()
    assert all(setup.backbone is first.backbone for setup in setups)
    assert first.of(Config(mesh=MeshConfig(data=2))).mesh.size == 2


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
