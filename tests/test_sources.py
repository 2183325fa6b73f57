"""Every kind of file gives the same records; every fault names its place."""

import gzip
import json
from pathlib import Path

import pytest

from prefix_jax.data.sources import read_records, read_texts
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError

PAIRS = [
    ("name : A, B", 'He said "no".'),
    ("größe : £30", "Straße, 東京 🙂"),
    (" blanks ", "a\\tb"),
]


def write(path: Path, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def as_jsonl(pairs):
    rows = [json.dumps({"source": s, "target": t}) for s, t in pairs]
    return "\n".join(rows) + "\n"


def as_csv(pairs):
    rows = [("source", "target"), *pairs]
    quoted = [['"' + v.replace('"', '""') + '"' for v in row] for row in rows]
    return "\r\n".join(",".join(row) for row in quoted) + "\r\n"


def as_tsv(pairs):
    return "\n".join("\t".join(row) for row in [("source", "target"), *pairs])


def files(folder, **changes):
    return DataConfig(source="files", path=str(folder), **changes)


def pairs_of(config, name="train"):
    return [(r.source, *r.targets) for r in read_records(config, name)]


def error(config, name="train", read=read_records):
    with pytest.raises(InputError) as raised:
        list(read(config, name))
    return str(raised.value)


FORMATS = {".jsonl": as_jsonl, ".csv": as_csv, ".tsv": as_tsv}


@pytest.mark.parametrize("end", FORMATS)
@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_formats_agree(tmp_path, end, zipped, mark):
    write(tmp_path / f"train{end}{zipped}", mark + FORMATS[end](PAIRS))
    assert pairs_of(files(tmp_path)) == PAIRS
    assert pairs_of(files(tmp_path), f"train{end}{zipped}") == PAIRS


def test_other_columns_and_lists(tmp_path):
    rows = [
        {"in": "x", "out": "a"},
        {"in": "y", "out": ["a", "b", "a"]},
        {"in": "z", "references": ["c", "d"]},
        {"in": "z", "out": "d", "references": ["c", "d"]},
    ]
    write(tmp_path / "train.jsonl", "\n\n".join(map(json.dumps, rows)))
    config = files(tmp_path, source_column="in", target_column="out")
    expected = [("x", "a"), ("y", "a", "b", "a"), ("z", "c", "d"), ("z", "d", "c")]
    assert pairs_of(config) == expected


def test_quoted_line_ends_keep_count(tmp_path):
    write(tmp_path / "train.csv", 'source,target\n"a\nb",c\nd,e\nf\n')
    config = files(tmp_path)
    with pytest.raises(InputError, match=r"train\.csv, line 5: 1 values; expected 2"):
        list(read_records(config, "train"))
    records = read_records(config, "train")
    assert [next(records).place[-6:], next(records).place[-6:]] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    ("name", "content", "place", "words"),
    [
        ("train.jsonl", b'{"source": "a", "target": "b"}\n{"so\xff', 2, "not UTF-8"),
        ("train.csv", b"source,target\n\xe9,b\n", 2, "0xe9"),
        ("train.jsonl", '{"source": "a",\n', 1, "not JSON"),
        ("train.jsonl", '["a", "b"]\n', 1, "a list; expected one object a line"),
        ("train.jsonl", "null\n", 1, "null; expected one object a line"),
        ("train.jsonl", '{"source": "a", "target": 3}', 1, "3, a whole number; exp"),
        ("train.jsonl", '{"source": "a", "target": true}', 1, "true, a boolean; exp"),
        ("train.jsonl", '{"source": {"a": 1.5}}', 1, '{"a": 1.5}, an object; exp'),
        ("train.jsonl", '{"source": null, "target": "b"}', 1, "holds null; expected"),
        ("train.jsonl", '{"source": ["a", "b"], "target": "b"}', 1, "list"),
        ("train.jsonl", '{"source": "a", "target": []}', 1, "empty list"),
        ("train.jsonl", '{"source": "a", "target": " "}', 1, "empty target"),
        ("train.jsonl", '{"source": "a", "target": "\\ud800"}', 1, "surrogate"),
        ("train.jsonl", '{"source": "a", "targte": "b"}', 1, '"target"'),
        ("train.jsonl", '{"source": "a", "targte": "b"}', 1, 'did you mean "targte"'),
        ("train.csv", "src,target\na,b\n", 2, "--data.source-column says"),
        ("train.csv", 'source,target\na,b\n"c,d\ne,f\n', 3, "is never closed"),
        ("train.csv", "source,target\na,b,c\n", 2, "holds a comma between double q"),
        ("train.csv", "source,target\na\n", 2, "target is missing"),
        ("train.tsv", "source\ttarget\na\tb\tc\n", 2, "cannot hold a tab"),
        ("train.csv", "source,target,source\na,b,c\n", 1, "twice"),
        ("train.tsv", "source\ttarget\na\n", 2, "1 values"),
    ],
)
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_faults_name_file_and_line(tmp_path, name, content, place, words, zipped):
    write(tmp_path / (name + zipped), content)
    message = error(files(tmp_path))
    assert f"{tmp_path / (name + zipped)}, line {place}: " in message
    assert words in message


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.tsv"])
@pytest.mark.parametrize("content", ["", "source,target\n", "\n\n"])
def test_empty(tmp_path, name, content):
    if name == "train.jsonl":
        content = content.replace("source,target", "")
    write(tmp_path / name, content)
    assert f'"train" of {tmp_path / name} is empty' in error(files(tmp_path))
    assert f'"train[3:]" of {tmp_path / name}' in error(files(tmp_path), "train[3:]")


def test_missing_files(tmp_path):
    assert "does not exist" in error(files(tmp_path / "nowhere"))
    folder = tmp_path / "data"
    folder.mkdir()
    assert "holds nothing" in error(files(folder))
    assert 'did you mean "data"?' in error(files(tmp_path / "dta"))
    write(folder / "trian.csv", as_csv(PAIRS))
    message = error(files(folder))
    assert "trian.csv" in message and 'did you mean "trian"?' in message
    assert 'rows of it such as "trian.csv[:800]"' in message
    assert pairs_of(files(folder), "trian.csv[:1]") == PAIRS[:1]
    assert f"--data.path {folder}" in error(files(folder / "trian.csv"))
    write(folder / "train.csv", as_csv(PAIRS))
    write(folder / "train.jsonl.gz", as_jsonl(PAIRS))
    assert "train.csv, train.jsonl.gz" in error(files(folder))
    write(folder / "notes.md", "x")
    assert '".md"' in error(files(folder), "notes.md")
    write(folder / "words.txt", "x")
    assert '".txt"' in error(files(folder), "words.txt")


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(as_jsonl(PAIRS * 200).encode())
    (tmp_path / "train.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "damaged gzip" in error(files(tmp_path))
    (tmp_path / "train.jsonl.gz").write_bytes(b"plain")
    assert "damaged gzip" in error(files(tmp_path))


def test_sources_that_are_not(tmp_path):
    assert 'did you mean "quickstart"' in error(DataConfig(source="quikstart"))
    assert "that holds it: give --data.path FOLDER" in error(DataConfig(source="e2e"))
    message = error(DataConfig(source="e2e", path=str(tmp_path)), "dev")
    assert "train, validation, test" in message


def test_quickstart():
    config = DataConfig(source="quickstart")
    for split in (config.train, config.validation, "test"):
        assert all(record.targets for record in read_records(config, split))


def texts(folder, name="train"):
    config = files(folder, task="language_modelling", target_column="text")
    return list(read_texts(config, name))


def test_documents(tmp_path):
    write(tmp_path / "lines.txt", "one\r\n\n  two\nthree")
    assert texts(tmp_path, "lines") == ["one", "  two", "three"]
    assert texts(tmp_path, "lines[1:2]") == ["  two"]
    write(tmp_path / "wiki.test.raw", " = One = \n \n Two .")
    assert texts(tmp_path, "wiki.test") == [" = One = ", " Two ."]
    end = "<|endoftext|>"
    text = f"\na\n\nb\n{end}\n{end}\r\n c <|endoftext|> d\n{end}\n\n"
    write(tmp_path / "separated.txt.gz", text)
    assert texts(tmp_path, "separated") == ["a\n\nb", " c <|endoftext|> d"]
    write(tmp_path / "rows.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    assert texts(tmp_path, "rows") == ["a", "b"]
    assert texts(tmp_path, "rows[1:]") == ["b"]
    write(tmp_path / "empty.txt", f"\n{end}\n")
    config = files(tmp_path, task="language_modelling")
    assert "is empty" in error(config, "empty", read_texts)
    write(tmp_path / "bad.txt", b"a\nb\xc3\n")
    assert "bad.txt, line 2: not UTF-8" in error(config, "bad", read_texts)
