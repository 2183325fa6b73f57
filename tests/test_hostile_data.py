"""Data files of strangers: what is written is read, and what cannot be is refused."""

import csv
import gzip
import json
import re
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from prefix_jax.data import files
from prefix_jax.data.official import dart, webnlg
from prefix_jax.data.tasks import load_examples
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
QUICK = settings(max_examples=50, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("source", "name", "whole"),
    [
        ("files", "train.jsonl.gz", b'{"source": "%s", "target": "b"}'),
        ("files", "train.csv.gz", b"source,target\n%s,b\n"),
        ("dart", "dart-v1.1.1-full-train.json.gz", b"[%s]"),
        ("dart", "dart-v1.1.1-full-train.json.gz", b"[%s]\n" * 3),
        ("webnlg", "webnlg.tar.gz", None),
    ],
)
def test_a_small_file_of_much_is_refused_early(
    source, name, whole, tmp_path, monkeypatch
):
    """A gzip file of a thousandth of its content: no more than `LARGEST` is held."""
    for module in (files, dart, webnlg):
        monkeypatch.setattr(module, "LARGEST", 2**20)
    if whole is None:
        member = tarfile.TarInfo("train/a.xml")
        member.size = 2**26
        content = member.tobuf() + bytes(member.size)
    else:
        content = whole.replace(b"%s", b" " * (2**26 // whole.count(b"%s")))
    if whole is not None and whole.count(b"%s") > 1:  # lines that are short enough
        content = content.replace(b" " * 2**19, b" " * (2**19 - 1) + b"\n")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content))
    assert path.stat().st_size < 2**18
    del content
    config = DataConfig(source=source, path=str(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=re.escape(str(path))):
            load_examples(config, "train")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_archive_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(webnlg, "MOST_MEMBERS", 10)
    header = tarfile.TarInfo("train/a.xml").tobuf()
    (tmp_path / "webnlg.tar.gz").write_bytes(gzip.compress(header * 11 + bytes(1024)))
    with pytest.raises(InputError, match="more than 10 files"):
        load_examples(DataConfig(source="webnlg", path=str(tmp_path)), "train")


def rows_of(path):
    return [row for _, row in files.read_rows(path)]


@QUICK
@given(rows=st.lists(st.dictionaries(TEXT, TEXT, max_size=3), max_size=4))
def test_jsonl_gives_the_rows_that_were_written(rows):
    with tempfile.TemporaryDirectory() as folder:
        for number, ascii_only in enumerate((True, False)):
            lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows]
            path = Path(folder, f"{number}.jsonl")
            path.write_text("".join(lines), encoding="utf-8", newline="")
            assert rows_of(path) == rows


@QUICK
@given(
    columns=st.lists(TEXT, min_size=2, max_size=3, unique=True),
    values=st.lists(st.lists(TEXT, min_size=3, max_size=3), max_size=4),
)
def test_csv_gives_the_rows_that_were_written(columns, values):
    table = [columns, *(row[: len(columns)] for row in values)]
    assume(not columns[0].startswith("\ufeff"))  # in front of a file it is no text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(table)
        assert [list(row.items()) for row in rows_of(path)] == [
            list(zip(columns, row, strict=True)) for row in table[1:]
        ]


@QUICK
@given(
    values=st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=4),
)
def test_tsv_gives_the_rows_that_were_written(values):
    """What has neither tab nor line end; a row of nothing is no row."""
    values = [[re.sub(r"[\t\r\n]", "", one) for one in row] for row in values]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.tsv")
        lines = ["source\ttarget", *map("\t".join, values)]
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        assert [list(row.values()) for row in rows_of(path)] == values


@QUICK
@given(content=st.binary(max_size=60), ending=st.sampled_from([*files.ENDINGS]))
@example(content=b"\xef\xbb\xbf", ending=".csv")
@example(content=b"\x1f\x8b\x08\x00", ending=".jsonl")
def test_any_bytes_are_rows_or_an_input_error(content, ending):
    with tempfile.TemporaryDirectory() as folder:
        for zipped in ("", files.GZIP):
            path = Path(folder, f"x{ending}{zipped}")
            path.write_bytes(content)
            try:
                if ending in files.TABLE_ENDINGS:
                    rows_of(path)
                else:
                    list(files.read_documents(path))
            except InputError as error:
                assert str(path) in str(error)
