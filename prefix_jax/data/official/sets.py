"""The table of official data sets: how each is read, and what its columns are."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prefix_jax.data import e2e
from prefix_jax.data.files import candidates, find_file, read_rows
from prefix_jax.data.official import dart, parallel, webnlg
from prefix_jax.errors import InputError

SPLITS = ("train", "validation", "test")

Row = dict[str, object]
Placed = tuple[str, Row]
"""A row with its place, for messages: `data/train.csv, line 3`."""

Reader = Callable[[Path, str], Iterator[Placed]]
"""Rows of `train`, `validation`, `test` (or a file by its own name) in a folder."""


@dataclasses.dataclass(frozen=True)
class OfficialSet:
    """A data set in the files of its authors."""

    title: str
    read: Reader
    has: Callable[[Path, str], bool]
    """Whether the files of a split are there."""
    tfds_name: str
    """What our TFDS builder calls it."""
    homepage: str
    licence: str
    texts: tuple[str, ...]
    """Columns that hold one text."""
    lists: tuple[str, ...] = ()
    """Columns that hold a list of texts."""
    source: str | None = None
    """Column of the source; None: `data.source_column` says. So for the next two."""
    target: str | None = None
    subset: str | None = None


def _has(stems: Mapping[str, str], *endings: str) -> Callable[[Path, str], bool]:
    return lambda folder, split: bool(candidates(folder, stems[split], endings))


def _read_columns(*names: str, stems: Mapping[str, str], end: str) -> Reader:
    """A reader of rows of a table, of which only these columns are kept."""

    def read(folder: Path, split: str) -> Iterator[Placed]:
        path = find_file(folder, stems.get(split, split), (end,))
        for place, row in read_rows(path):
            if missing := [name for name in names if name not in row]:
                raise InputError(
                    f"{place}: no column {missing[0]}; expected {', '.join(names)}, "
                    f"found {', '.join(row)}"
                )
            # GLUE's sentences end in a blank.
            values = [row[name] for name in names]
            kept = [v.strip() if isinstance(v, str) else v for v in values]
            yield place, dict(zip(names, kept, strict=True))

    return read


def _multi30k(folder: Path, split: str) -> Iterator[Placed]:
    name = parallel.MULTI30K.get(split, split)
    return parallel.read(folder, name, parallel.MULTI30K_LANGUAGES)


_XSUM = {split: split for split in SPLITS}
_SST2 = {"train": "train", "validation": "dev", "test": "test"}

SETS: Mapping[str, OfficialSet] = {
    "e2e": OfficialSet(
        title="E2E NLG 2017",
        read=e2e.read,
        has=_has(e2e.SPLITS, ".csv"),
        tfds_name="e2e_nlg",
        homepage="https://www.macs.hw.ac.uk/InteractionLab/E2E/",
        licence="CC BY-SA 4.0",
        texts=(e2e.MEANING, e2e.TEXT),
        source=e2e.MEANING,
        target=e2e.TEXT,
    ),
    "webnlg": OfficialSet(
        title="WebNLG challenge 2017",
        read=webnlg.read,
        has=webnlg.has,
        tfds_name="webnlg_2017",
        homepage="https://synalp.gitlabpages.inria.fr/webnlg-challenge/",
        licence="not stated in its files",
        texts=(webnlg.SOURCE, webnlg.SUBSET),
        lists=(webnlg.TEXTS,),
        source=webnlg.SOURCE,
        target=webnlg.TEXTS,
        subset=webnlg.SUBSET,
    ),
    "dart": OfficialSet(
        title="DART v1.1.1",
        read=dart.read,
        has=_has(dart.SPLITS, ".json"),
        tfds_name="dart_triples",
        homepage="https://github.com/Yale-LILY/dart",
        licence="MIT",
        texts=(dart.SOURCE,),
        lists=(dart.TEXTS,),
        source=dart.SOURCE,
        target=dart.TEXTS,
    ),
    "xsum": OfficialSet(
        title="XSum",
        read=_read_columns("document", "summary", stems=_XSUM, end=".jsonl"),
        has=_has(_XSUM, ".jsonl"),
        tfds_name="xsum_lines",
        homepage="https://github.com/EdinburghNLP/XSum",
        licence="not stated for the texts",
        texts=("document", "summary"),
        source="document",
        target="summary",
    ),
    "sst2": OfficialSet(
        title="SST-2, as in GLUE",
        read=_read_columns("sentence", "label", stems=_SST2, end=".tsv"),
        has=_has(_SST2, ".tsv"),
        tfds_name="sst2_lines",
        homepage="https://nlp.stanford.edu/sentiment/",
        licence="not stated",
        texts=("sentence", "label"),
        source="sentence",
        target="label",
    ),
    "multi30k": OfficialSet(
        title="Multi30k (task 1)",
        read=_multi30k,
        has=_has(parallel.MULTI30K, ".en"),
        tfds_name="multi30k_lines",
        homepage="https://github.com/multi30k/dataset",
        licence="not stated in its files",
        texts=parallel.MULTI30K_LANGUAGES,
    ),
}


def set_of_tfds(name: str) -> OfficialSet | None:
    """The set that our TFDS builder `NAME[/config][:version]` holds, if it is ours."""
    base = name.split(":")[0].split("/")[0]
    return next((one for one in SETS.values() if one.tfds_name == base), None)
