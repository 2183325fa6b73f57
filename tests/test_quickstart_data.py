"""The quick start's data set: reproducible, faithful, and held out as it says."""

import json
import random
import re
from pathlib import Path

import pytest

from prefix_jax.data.quickstart import meanings, words
from prefix_jax.data.quickstart.check import faults
from prefix_jax.data.quickstart.generate import main, make_splits, write_splits
from prefix_jax.data.quickstart.grammar import realise

FOLDER = Path(meanings.__file__).parent
SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")


def read(split: str) -> list[dict]:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def records() -> dict[str, list[dict]]:
    return {split: read(split) for split in SPLITS}


def meanings_of(records: list[dict]) -> list[dict[str, str]]:
    return [
        dict(part.split(" : ") for part in r["source"].split(" | ")) for r in records
    ]


def without_name(meaning: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(item for item in meaning.items() if item[0] != "name")


def test_regenerating_gives_the_committed_bytes(tmp_path, capsys):
    main(["--out", str(tmp_path)])
    assert "train: 1250 sources, 2000 references" in capsys.readouterr().out
    for split in SPLITS:
        file = f"{split}.jsonl"
        assert (tmp_path / file).read_bytes() == (FOLDER / file).read_bytes()


def test_another_seed_gives_another_set(tmp_path):
    write_splits(make_splits(seed=1), tmp_path)
    for split in SPLITS:
        file = f"{split}.jsonl"
        assert (tmp_path / file).read_bytes() != (FOLDER / file).read_bytes()


def test_a_missing_folder_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "absent")])
    assert "absent is not a folder" in capsys.readouterr().err


def test_sizes_and_schema(records):
    assert [len(records[split]) for split in SPLITS] == [1250, 100, 100]
    assert sum(len(r["references"]) for r in records["train"]) == 2000
    assert sum((FOLDER / f"{s}.jsonl").stat().st_size for s in SPLITS) < 1_000_000
    for split in SPLITS:
        allowed = {1, 2} if split == "train" else {5}
        for record in records[split]:
            assert list(record) == ["source", "references"]
            references = record["references"]
            assert len(references) in allowed
            assert len(set(references)) == len(references)


@pytest.mark.parametrize("split", SPLITS)
def test_sources_are_linearised_meanings(records, split):
    sources = [r["source"] for r in records[split]]
    assert len(set(sources)) == len(sources)
    for source, meaning in zip(sources, meanings_of(records[split]), strict=True):
        assert 3 <= len(meaning) <= 6
        assert next(iter(meaning)) == "name"
        assert set(meaning) <= set(meanings.KEYS)
        assert meanings.linearise(meaning) == source
        assert meanings.parse(source) == meaning


@pytest.mark.parametrize("split", SPLITS)
def test_every_reference_says_its_source_and_nothing_else(records, split):
    for record in records[split]:
        for reference in record["references"]:
            assert faults(record["source"], reference) == []


@pytest.mark.parametrize("split", SPLITS)
def test_values_are_copied_literally(records, split):
    """A cruder check than `faults`: the values themselves, in all references."""
    for record, meaning in zip(
        records[split], meanings_of(records[split]), strict=True
    ):
        for reference in record["references"]:
            for key, value in meaning.items():
                if key == "area":
                    assert value.split(" ", 1)[1] in reference
                elif key != "railway station":
                    assert value in reference
            numbers = set(re.findall(r"[\d,]*\d", reference))
            told = {meaning.get("population"), meaning.get("founded")} - {None}
            assert numbers == told


def test_articles_and_number_agree(records):
    for split in SPLITS:
        for reference in (x for r in records[split] for x in r["references"]):
            assert not re.search(r"\ba [aeio]|\b[Aa]n [^aeio]", reference)
            assert not re.search(
                r"landmark is (two|three)|landmarks are an? ", reference
            )


def test_nothing_leaks_between_splits(records):
    found = {split: meanings_of(records[split]) for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), HELD_OUT):
        names = [{m["name"] for m in found[split]} for split in (one, other)]
        combinations = [
            {without_name(m) for m in found[split]} for split in (one, other)
        ]
        texts = [
            {x for r in records[split] for x in r["references"]}
            for split in (one, other)
        ]
        for first, second in (names, combinations, texts):
            assert not first & second


def test_held_out_values_and_subsets_are_unseen_in_training(records):
    train = meanings_of(records["train"])
    for meaning in train:
        first, second = meaning["name"].split()
        assert first in words.NAME_FIRST.seen
        assert second in words.NAME_SECOND.seen
        assert meaning.get("river") not in words.RIVERS.held_out
        assert meaning.get("type") not in {t.value for t in words.HELD_OUT_TYPES}
        hidden = {one.value for one in words.HELD_OUT_LANDMARKS}
        assert meaning.get("landmark") not in hidden
        for pool in words.KNOWN_FOR.values():
            assert meaning.get("known for") not in pool.held_out
    seen_values = {key: {m[key] for m in train if key in m} for key in meanings.KEYS}
    seen_words = {word for m in train for word in m["name"].split()}
    seen_subsets = {frozenset(m) for m in train}
    for split in HELD_OUT:
        tests = meanings_of(records[split])
        new_word = [not seen_words.issuperset(m["name"].split()) for m in tests]
        new_subset = [frozenset(m) not in seen_subsets for m in tests]
        assert sum(new_word) >= 30
        assert sum(new_subset) >= 20
        for key in ("river", "landmark", "known for", "type"):
            assert any(key in m and m[key] not in seen_values[key] for m in tests)


def test_training_is_varied(records):
    train = meanings_of(records["train"])
    assert len({m["name"] for m in train}) > 600
    assert len({frozenset(m) for m in train}) > 120
    templates = set()
    for record, meaning in zip(records["train"], train, strict=True):
        for text in record["references"]:
            for key, value in meaning.items():
                text = text.replace(value, f"<{key}>")
            templates.add(text)
    assert len(templates) > 1000


def test_the_grammar_never_fails_the_reader():
    rng = random.Random(0)
    for _ in range(2000):
        place = meanings.draw_place(rng, unseen=True)
        meaning = meanings.tell(place, meanings.draw_subset(rng))
        assert faults(meanings.linearise(meaning), realise(meaning, rng)) == []


SOURCE = (
    "name : Silver Mill | type : fishing port | area : northern Wales | "
    "population : 2,400 | landmark : two windmills | railway station : no"
)
GOOD = (
    "Silver Mill is a fishing port in the north of Wales with a population of 2,400. "
    "Its main landmarks are two windmills, and it has no railway station."
)


def test_the_reader_accepts_a_good_reference():
    assert faults(SOURCE, GOOD) == []


@pytest.mark.parametrize(
    ("said", "instead", "complaint"),
    [
        ("Silver Mill", "Silver Hill", "name is expressed 0 times"),
        ("a fishing port", "a port", "type is expressed 0 times"),
        ("a fishing port", "an fishing port", "type is expressed 0 times"),
        ("the north of Wales", "the south of Wales", "area is expressed 0 times"),
        ("2,400", "2,401", "population is expressed 0 times"),
        (" with a population of 2,400", "", "population is expressed 0 times"),
        ("landmarks are two", "landmark is two", "says more than its source"),
        ("no railway station", "a railway station", "railway station is expressed 0"),
        ("Its main", "The port has two windmills. Its main", "landmark is expressed 2"),
        ("fishing port", "fishing port on the River Wren", "says more than its source"),
        ("station.", "station and was founded in 1742.", "says more than its source"),
        ("station.", "station and is known for its wool.", "says more than its source"),
        ("Its main", "its main", "starts a sentence in lower case"),
        ("it has", "it has has", "repeats a word"),
        ("station.", "station", "does not end with a full stop"),
    ],
)
def test_the_reader_refuses_a_bad_reference(said, instead, complaint):
    bad = GOOD.replace(said, instead)
    found = faults(SOURCE, bad)
    assert bad != GOOD
    assert any(complaint in fault for fault in found), found


def test_pools_do_not_overlap():
    pools = (words.NAME_FIRST, words.NAME_SECOND, words.RIVERS)
    for pool in (*pools, *words.KNOWN_FOR.values()):
        assert len(set(pool.all)) == len(pool.all)
    seen = {value for pool in words.KNOWN_FOR.values() for value in pool.seen}
    hidden = {value for pool in words.KNOWN_FOR.values() for value in pool.held_out}
    assert not seen & hidden
    assert len(words.TYPE_BY_VALUE) == len(words.TYPES) + len(words.HELD_OUT_TYPES)
    landmarks = len(words.LANDMARKS) + len(words.HELD_OUT_LANDMARKS)
    assert len(words.LANDMARK_BY_VALUE) == landmarks
