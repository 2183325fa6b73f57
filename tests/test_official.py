"""Each official format gives the records that the paper trained on."""

import json

import official_files
import pytest
import tensorflow_datasets as tfds

from prefix_jax.data.builders import official as builder
from prefix_jax.data.official.sets import SETS
from prefix_jax.data.sources import read_records
from prefix_jax.data.tasks import Example, load_examples
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError

SPLITS = ("train", "validation", "test")
GERMAN = {"source_column": "en", "target_column": "de"}
SENTIMENT = {"task": "classification", "labels": ("0=negative", "1=positive")}

FORMATS = {
    "webnlg": (official_files.webnlg, {}),
    "dart": (official_files.dart, {}),
    "xsum": (official_files.xsum, {}),
    "sst2": (official_files.sst2, SENTIMENT),
    "multi30k": (official_files.multi30k, GERMAN),
}


def examples(source, folder, split="train", **changes):
    return load_examples(DataConfig(source=source, path=str(folder), **changes), split)


def error(source, folder, split="train", **changes) -> str:
    with pytest.raises(InputError) as raised:
        examples(source, folder, split, **changes)
    return str(raised.value)


@pytest.mark.parametrize(
    "write", [official_files.webnlg, official_files.webnlg_archive]
)
def test_webnlg(tmp_path, write):
    """Only good texts to train on; seen and unseen categories to score."""
    write(tmp_path)
    airport = "| Aarhus_Airport : city : Aarhus"
    bean = "| Alan_Bean : nationality : United_States"
    two = f"{bean} | Alan_Bean : mission : Apollo_12"
    assert [(e.source, e.target) for e in examples("webnlg", tmp_path)] == [
        (airport, "It & it."),
        (two, "Bean flew."),
        (two, "He flew."),
    ]
    [validation] = examples("webnlg", tmp_path, "validation")
    assert validation.references == ("Bean is American.", "Bean is.")
    assert examples("webnlg", tmp_path, "test") == [
        Example(bean, "Bean is American.", ("Bean is American.", "Yes."), None, "seen"),
        Example("| A : plays : B", "A plays B.", ("A plays B.",), None, "unseen"),
    ]


def test_dart(tmp_path):
    official_files.dart(tmp_path)
    source = "Mars Hill : joined : 1973 | Mars Hill : has_town : X"
    train = examples("dart", tmp_path)
    assert [e.source for e in train] == [source] * 4
    [test] = examples("dart", tmp_path, "test")
    assert test.references == (
        "Mars Hill joined in 1973.",
        "In 1973 Mars Hill joined.",
    ) * (2)


def test_xsum_sst2_and_multi30k(tmp_path):
    for write in (official_files.xsum, official_files.sst2, official_files.multi30k):
        write(tmp_path)
    [document] = examples("xsum", tmp_path, task="summarization")
    assert (document.source, document.target) == ("Line one.\nLine two.", "Lines.")
    sentences = examples("sst2", tmp_path, "validation", **SENTIMENT)
    assert [(e.source, e.target) for e in sentences] == [
        ('he said " no', "negative"),
        ("a fine film", "positive"),
    ]
    pair = {"source_column": "de", "target_column": "fr"}
    sets = examples("multi30k", tmp_path, "validation", task="translation", **pair)
    assert [(e.source, e.target) for e in sets] == [
        ("Ein Hund.", "Un chien."),
        ("Zwei Männer.", "Deux hommes."),
    ]
    same = examples(
        "parallel", tmp_path, "validation", validation="val", task="translation", **pair
    )
    assert same == sets


def test_a_slice_is_those_rows(tmp_path):
    official_files.multi30k(tmp_path)
    for part, expected in {
        "[:1]": ["A dog."],
        "[1:]": ["Two men."],
        "[0:9]": ["A dog.", "Two men."],
    }.items():
        config = DataConfig(source="multi30k", path=str(tmp_path), **GERMAN)
        records = read_records(config, f"train{part}")
        assert [record.source for record in records] == expected
    assert '"train[2:]" of multi30k' in error(
        "multi30k", tmp_path, train="train[2:]", **GERMAN
    )


@pytest.mark.parametrize("name", FORMATS)
def test_tfds_gives_what_the_files_give(tmp_path, name):
    tfds.disable_progress_bar()
    write, changes = FORMATS[name]
    files, prepared = tmp_path / "files", tmp_path / "prepared"
    files.mkdir()
    write(files)
    builder.main([name, str(files), str(prepared)])
    source = f"tfds:{SETS[name].tfds_name}"
    for split in SPLITS:
        assert examples(source, prepared, split, **changes) == examples(
            name, files, split, **changes
        )


def test_only_the_splits_that_are_there_are_prepared(tmp_path):
    tfds.disable_progress_bar()
    official_files.dart(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"dart-v1.1.1-full-{split}.json.gz").unlink()
    builder.prepare("dart", tmp_path, tmp_path / "prepared")
    assert examples("tfds:dart_triples", tmp_path / "prepared", "validation")
    assert "cannot read split" in error("tfds:dart_triples", tmp_path / "prepared")
    message = error("tfds:dart_triples", tmp_path)
    assert "official dart FOLDER DATA_DIR" in message
    with pytest.raises(InputError, match=r'for "drt"; did you mean "dart"'):
        builder.prepare("drt", tmp_path, tmp_path)


# --- faults -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("<benchmark>\n<entries>\n<entry\n", 3, "not XML"),
        ("<entries>\n<entry eid='Id1'/></entries>", 2, "without its category"),
        ("<entries>\n\n<mtriple>a | b | c</mtriple></entries>", 3, "outside of any"),
        (official_files.webnlg_xml(("City", [], [("A.", "good")])), 3, "<mtriple>"),
        (
            official_files.webnlg_xml(("City", ["a | b"], [("A.", "good")])),
            6,
            '"a | b" is not a triple',
        ),
    ],
)
def test_faults_of_webnlg(tmp_path, text, line, words):
    official_files.webnlg(tmp_path)
    path = next((tmp_path / "train" / "1triples").iterdir())
    path.write_text(text)
    message = error("webnlg", tmp_path)
    assert f"{path}, line {line}: " in message and words in message


def test_files_of_webnlg_that_are_missing(tmp_path):
    assert "has no train/ of WebNLG" in error("webnlg", tmp_path)
    assert "has no train/ of WebNLG" in error("webnlg", tmp_path / "nowhere")
    assert "no split" in error("webnlg", tmp_path, train="dev")
    archive = tmp_path / "webnlg.tar.gz"
    official_files.webnlg_archive(tmp_path)
    whole = next(tmp_path.glob("*.tar.gz"))
    archive.write_bytes(whole.read_bytes()[:300])
    whole.unlink()
    assert f"{archive}: damaged archive" in error("webnlg", tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "the file is a JSON list"),
        ('{"a": 1}', 1, "the file is a JSON list"),
        ('[\n{"a": 1}\n]', 2, "not an entry of DART"),
        ('[\n{"a": }\n]', 2, "not JSON"),
        ('[\n\n{"tripleset": [["a", "b"]], "annotations": []}]', 3, "that is none"),
        ('[{"tripleset": [["a", "b", 3]], "annotations": []}]', 1, "that is none"),
        ('[{"tripleset": [["a", "b", "c"]], "annotations": []}]', 1, "without a text"),
        (
            '[{"tripleset": [["a","b","c"]], "annotations": [{"text": "x"}]}\n{}]',
            2,
            "one of , ]",
        ),
    ],
)
def test_faults_of_dart(tmp_path, text, line, words):
    path = tmp_path / "dart-v1.1.1-full-train.json"
    path.write_text(text)
    message = error("dart", tmp_path)
    assert f"{path}, line {line}: " in message and words in message


def test_faults_of_tables_and_parallel_text(tmp_path):
    for write in (official_files.xsum, official_files.sst2, official_files.multi30k):
        write(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"document": "a", "sumary": "b"}')
    assert "train.jsonl, line 1: no column summary" in error("xsum", tmp_path)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t1\nb\t2\n")
    message = error("sst2", tmp_path, **SENTIMENT)
    assert 'train.tsv, line 3: label "2" is not in data.labels' in message
    german = {"task": "translation", **GERMAN}
    (tmp_path / "train.de.gz").unlink()
    (tmp_path / "train.de").write_text("Ein Hund.\n")
    message = error("parallel", tmp_path, **german)
    assert "train.de, line 2: the file ends before train.en.gz" in message
    message = error("parallel", tmp_path, source_column="en", target_column="dee")
    assert "no file train.dee" in message and 'did you mean "train.de"' in message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), "needs them, such as"),
        (("0=negative",), "two classes or more"),
        (("0=a", "0=b"), "two classes or more"),
        (("0=a", "1= a"), "two classes or more"),
        (("0=a", "1"), r'has "1"; expected RAW=WORDS'),
        (("0=a", "=b"), r'has "=b"; expected RAW=WORDS'),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(InputError, match=message):
        DataConfig(task="classification", labels=labels)


def test_labels_are_for_classification():
    with pytest.raises(InputError, match="and it alone"):
        DataConfig(labels=("0=a", "1=b"))


def test_rows_of_classification_are_not_grouped(tmp_path):
    rows = [("same", 1), ("same", "0"), ("other", "1")]
    lines = [json.dumps({"source": s, "target": t}) for s, t in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    found = examples("files", tmp_path, "test", **SENTIMENT)
    assert [(e.source, e.target) for e in found] == [
        ("same", "positive"),
        ("same", "negative"),
        ("other", "positive"),
    ]
    (tmp_path / "test.jsonl").write_text('{"source": "a", "target": ["0", "1"]}')
    message = error("files", tmp_path, "test", **SENTIMENT)
    assert "line 1: 2 labels; expected one" in message


# --- the real files ---------------------------------------------------------


@pytest.mark.slow
def test_real_webnlg(shared_data):
    folder = shared_data / "webnlg2017"
    train, validation, test = (examples("webnlg", folder, s) for s in SPLITS)
    assert len(train) == 18_025  # of 18,102 texts the good ones
    assert len(validation) == 871  # two of the 872 entries have the same triples
    assert len(test) == 1862
    assert sum(len(e.references) for e in validation) == 2268
    assert sum(len(e.references) for e in test) == 4928
    unseen = [e for e in test if e.subset == "unseen"]
    assert len(unseen) == 891 and sum(len(e.references) for e in unseen) == 2433


def test_real_dart(shared_data):
    found = examples("dart", shared_data / "dart", "validation")
    config = DataConfig(source="dart", path=str(shared_data / "dart"))
    assert len(list(read_records(config, "validation"))) == 2768
    assert sum(len(e.references) for e in found) == 6980
    assert found[0].source == (
        "Mars Hill College : joined : 1973 | "
        "Mars Hill College : location : Mars Hill, North Carolina"
    )


@pytest.mark.slow
def test_real_xsum_sst2_and_multi30k(shared_data):
    name = "xsum_validation_1000"
    xsum = examples("xsum", shared_data / "xsum", train=name)
    assert len(xsum) == 1000
    counts = {"train": 60_614, "validation": 6735}
    for split, number in counts.items():
        found = examples("sst2", shared_data / "sst2", split, **SENTIMENT)
        assert len(found) == number
    lines = {"train": 29_000, "validation": 1014, "test": 1000}
    for split, number in lines.items():
        config = DataConfig(
            source="multi30k", path=str(shared_data / "multi30k"), **GERMAN
        )
        assert len(list(read_records(config, split))) == number
