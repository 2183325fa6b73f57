"""A small recipe on a random backbone, and one run of it for all tests."""

import json
import shutil

import pytest

from prefix_jax.config import (
    BackboneConfig,
    Config,
    DecodeConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from prefix_jax.data_config import DataConfig
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.evaluation import write_evaluation
from prefix_jax.runs.train import train
from runs.pages import SOURCES, evaluation, texts
from runs.support import quiet

AREAS = ["riverside", "old town", "harbour", "hill"]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, number in (("train", 24), ("validation", 5), ("test", 4)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(number):
                area = AREAS[i % len(AREAS)]
                source = f"name : Mill {i} | area : {area}"
                targets = [f"Mill {i} is by the {area}.", f"The {area} has Mill {i}."]
                row = {"source": source, "references": targets[: 1 + i % 2]}
                file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="session")
def config(model_folder, data_folder):
    return Config(
        backbone=BackboneConfig(name=str(model_folder)),
        prefix=PrefixConfig(length=4, dropout=0.1),
        data=DataConfig(path=str(data_folder), max_length=60, overflow="error"),
        optim=OptimConfig(learning_rate=1e-2),
        train=TrainConfig(
            steps=7,
            batch_size=8,
            eval_every=3,
            checkpoint_every=2,
            log_every=1,
            samples=1,
        ),
        decode=DecodeConfig(max_new_tokens=4),
        mesh=MeshConfig(data=1),
    )


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory):
    """Work folder of the uninterrupted run; tests only read it."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    train(config, workdir, quiet())
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    """A finished run that is evaluated."""
    folder = tmp_path / "runs" / "mine"
    # Other tests evaluate it where it is.
    others = shutil.ignore_patterns("scores_*", "outputs_*", "references_*")
    shutil.copytree(finished, folder, ignore=others)
    write_evaluation(folder, evaluation(), texts(*zip(SOURCES, "xy", strict=True)))
    return folder


@pytest.fixture
def comparison(run, tmp_path):
    """What `compare` leaves: two runs and the backbone alone."""
    folder = tmp_path / "both"
    shutil.copytree(run, folder / "prefix")
    shutil.copytree(run, folder / "full")
    path = folder / "full" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["train"]["method"] = "full"
    path.write_text(json.dumps(record))
    alone = evaluation(which="none", loss=4.5)
    pairs = zip(reversed(SOURCES), "ab", strict=True)
    write_evaluation(folder / "none", alone, texts(*pairs))
    numbers = {"none": (0, 0.0), "prefix": (768, 0.01), "full": (9999, 1.0)}
    rows = [
        {"method": name, "trained": trained, "share": share, "scores": alone.to_dict()}
        for name, (trained, share) in numbers.items()
    ]
    (folder / "comparison.json").write_text(json.dumps(rows))
    return folder
