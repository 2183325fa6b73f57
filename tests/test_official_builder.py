"""The TFDS roads: our builders of official sets, and any other prepared data set."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from prefix_jax.data.builders import official as builder
from prefix_jax.data.sources import read_records
from prefix_jax.data.tasks import load_examples
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def no_bars():
    tfds.disable_progress_bar()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder like that of the official files, with 1,100 pairs to train on."""
    folder = tmp_path_factory.mktemp("official")
    for stem, number in (("trainset", 1100), ("devset", 5), ("testset_w_refs", 7)):
        rows = [
            f'"name[Café {n // 2}], eatType[pub]","Café {n // 2} is a pub, no. {n}."'
            for n in range(number)
        ]
        text = "\n".join(["mr,ref", *rows])
        (folder / f"{stem}.csv").write_text(text, encoding="utf-8")
    return folder


def test_both_roads_give_the_same_examples(official):
    by_csv = DataConfig(source="e2e", path=str(official))
    by_tfds = DataConfig(source="tfds:e2e_nlg", path=str(official))
    for split in SPLITS:
        examples = load_examples(by_csv, split)
        assert load_examples(by_tfds, split) == examples
    assert len(load_examples(by_tfds, "train")) == 1100
    assert load_examples(by_tfds, "test")[0].source == "name : Café 0 | Type : pub"
    ten = DataConfig(source="tfds:e2e_nlg:1.0.0", path=str(official), train="train[:9]")
    assert len(load_examples(ten, "train")) == 9


def test_prepared_elsewhere_from_the_command_line(official, tmp_path):
    builder.main(["e2e", str(official), str(tmp_path)])
    stored = tfds.data_source(
        "e2e_nlg", split="validation", data_dir=tmp_path, download=False
    )
    row = min(stored, key=lambda row: row["id"])
    assert row["meaning_representation"].decode() == "name[Café 0], eatType[pub]"
    with pytest.raises(SystemExit):
        builder.main(["e2e", str(tmp_path / "nowhere"), str(tmp_path)])


def test_needs_no_tensorflow(official):
    """In a fresh process, as other tests may have imported it."""
    code = (
        "import sys\n"
        "from prefix_jax.data_config import DataConfig\n"
        "from prefix_jax.data.tasks import load_examples\n"
        "config = DataConfig(source='tfds:e2e_nlg', path=sys.argv[1])\n"
        "assert load_examples(config, 'test')\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(official)], check=True)


def read(name, folder, split="train", **changes):
    config = DataConfig(source=f"tfds:{name}", path=str(folder), **changes)
    return list(read_records(config, split))


def test_refusals(official, tmp_path):
    with pytest.raises(InputError, match="official e2e FOLDER DATA_DIR"):
        read("e2e_nlg", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read("e2e_nlg", tmp_path / "nowhere")
    with pytest.raises(InputError, match="no prepared tfds:glue/sst2"):
        read("glue/sst2", tmp_path)
    builder.prepare("e2e", official, tmp_path)
    with pytest.raises(InputError, match=r'cannot read split "trian".*validation'):
        read("e2e_nlg", tmp_path, "trian")
    with pytest.raises(InputError, match='did you mean "e2e_nlg"'):
        read("e2e_nlgg", tmp_path)
    with pytest.raises(InputError, match=r"give --data\.path FOLDER"):
        list(read_records(DataConfig(source="tfds:e2e_nlg"), "train"))


def test_folder_that_cannot_be_written(official, tmp_path):
    (tmp_path / "e2e_nlg").write_text("a file in the way")
    with pytest.raises(InputError, match="cannot write"):
        builder.prepare("e2e", official, tmp_path)


def test_read_only_folder_stays_as_it_is(official, tmp_path):
    """Also for root, whom the file system would let write."""
    folder = tmp_path / "official"
    shutil.copytree(official, folder, ignore=shutil.ignore_patterns("e2e_nlg", "down*"))
    before = sorted(folder.rglob("*"))
    folder.chmod(0o555)
    try:
        with pytest.raises(InputError, match=r"is read-only.*prepare it elsewhere"):
            read("e2e_nlg", folder)
        assert sorted(folder.rglob("*")) == before
    finally:
        folder.chmod(0o755)


def test_other_format(official, tmp_path):
    builder.prepare("e2e", official, tmp_path)
    (info,) = tmp_path.glob("e2e_nlg/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="not stored as array_record"):
        read("e2e_nlg", tmp_path)


class Reviews(tfds.core.GeneratorBasedBuilder):
    """Another data set, with a label and a list."""

    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {
            "text": text,
            "label": tfds.features.ClassLabel(names=["bad", "good"]),
            "answers": tfds.features.Sequence(text),
            "score": np.float32,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(4):
            answers = [f"é{n}", "b"][: n + 1]
            row = {"text": f"t{n}", "label": n % 2, "answers": answers, "score": 0.5}
            yield n, row


def test_any_data_set(tmp_path):
    made = Reviews(data_dir=tmp_path, file_format="array_record")
    made.download_and_prepare()
    labels = read("reviews", tmp_path, source_column="text", target_column="label")
    assert sorted((r.source, *r.targets) for r in labels) == [
        ("t0", "bad"),
        ("t1", "good"),
        ("t2", "bad"),
        ("t3", "good"),
    ]
    lists = read("reviews", tmp_path, source_column="text", target_column="answers")
    assert sorted((r.source, *r.targets) for r in lists)[:2] == [
        ("t0", "é0"),
        ("t1", "é1", "b"),
    ]
    with pytest.raises(InputError, match="expected text"):
        read("reviews", tmp_path, source_column="text", target_column="score")
    with pytest.raises(InputError, match="answers, label, score, text"):
        read("reviews", tmp_path)


@pytest.mark.slow
def test_official_files(shared_data, tmp_path):
    builder.prepare("e2e", shared_data / "e2e", tmp_path)
    by_csv = DataConfig(source="e2e", path=str(shared_data / "e2e"))
    by_tfds = DataConfig(source="tfds:e2e_nlg", path=str(tmp_path))
    for split in SPLITS:
        assert load_examples(by_tfds, split) == load_examples(by_csv, split)
