"""Linearisation, grouping and subsets."""

import json

import numpy as np
import pytest

from prefix_jax.data.e2e import linearise
from prefix_jax.data.tasks import (
    Example,
    limit_examples,
    load_documents,
    load_examples,
)
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError


def test_linearise_as_in_the_paper():
    assert (
        linearise("name[Blue Spice], eatType[coffee shop], area[city centre]")
        == "name : Blue Spice | Type : coffee shop | area : city centre"
    )
    assert (
        linearise(
            "name[The Vaults], priceRange[more than £30], familyFriendly[no], "
            "customer rating[5 out of 5], near[Café, Adriatic]"
        )
        == "name : The Vaults | price : more than £30 | family friendly : no | "
        "customer rating : 5 out of 5 | near : Café, Adriatic"
    )


@pytest.mark.parametrize(
    "bad", ["", "a", "a[b", "a[b] c[d]", "a[b], c", "a[b],", "[x]"]
)
def test_linearise_refuses(bad):
    with pytest.raises(InputError, match="not an E2E meaning representation"):
        linearise(bad)


@pytest.fixture
def config(tmp_path):
    rows = [("x", "1"), ("y", "2"), ("x", "3"), ("x", "1")]
    text = "\n".join(json.dumps({"source": s, "target": t}) for s, t in rows)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(text)
    return DataConfig(path=str(tmp_path))


def test_pairs_to_train_groups_to_score(config):
    pairs = load_examples(config, "train")
    assert [(e.source, e.target) for e in pairs] == [
        ("x", "1"),
        ("y", "2"),
        ("x", "3"),
        ("x", "1"),
    ]
    assert all(e.references == (e.target,) for e in pairs)
    for split in ("validation", "test"):
        assert load_examples(config, split) == [
            Example("x", "1", ("1", "3", "1")),
            Example("y", "2", ("2",)),
        ]


def test_documents_are_targets(config):
    assert list(load_documents(config, "train")) == ["1", "2", "3", "1"]


def test_no_test_split(config):
    with pytest.raises(InputError, match=r"data\.test is None"):
        load_examples(DataConfig(path=config.path, test=None), "test")


def test_language_modelling_has_no_examples():
    with pytest.raises(InputError, match="documents"):
        load_examples(DataConfig(task="language_modelling"), "train")


def test_bad_meaning_names_its_place(tmp_path):
    (tmp_path / "trainset.csv").write_text("mr,ref\nname[A],Hi.\nname,Hi.\n")
    with pytest.raises(InputError, match=r"trainset\.csv, line 3: \"name\" is not"):
        load_examples(DataConfig(source="e2e", path=str(tmp_path)), "train")


def test_limit_is_the_seeded_permutation():
    examples = [Example(str(n), "t", ("t",)) for n in range(20)]
    order = np.random.default_rng(3).permutation(20)
    few = limit_examples(examples, 5, seed=3)
    assert [e.source for e in few] == [str(n) for n in order[:5]]
    assert limit_examples(examples, None, seed=3) == examples
    more = limit_examples(examples, 30, seed=3)
    assert len(more) == 20 and set(more) == set(examples)
    assert limit_examples(examples, 9, seed=3)[:5] == few


def test_real_e2e(shared_data):
    config = DataConfig(source="e2e", path=str(shared_data / "e2e"))
    validation, test = (load_examples(config, s) for s in ("validation", "test"))
    assert (len(validation), len(test)) == (547, 630)
    assert sum(len(e.references) for e in validation) == 4672
    assert sum(len(e.references) for e in test) == 4693
    assert test[0].source == (
        "name : Blue Spice | Type : coffee shop | area : city centre"
    )


def test_rows_that_name_their_prefix_are_grouped_by_it(tmp_path):
    rows = [("x", "1", "a"), ("x", "2", "b"), ("x", "3", "a")]
    text = [json.dumps({"source": s, "target": t, "who": w}) for s, t, w in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(text))
    config = DataConfig(path=str(tmp_path), prefix_column="who")
    assert load_examples(config, "test", ["a", "b"]) == [
        Example("x", "1", ("1", "3"), "a"),
        Example("x", "2", ("2",), "b"),
    ]
    with pytest.raises(InputError, match=r'line 2: there is no prefix "b".* one of a$'):
        load_examples(config, "test", ["a"])
    with pytest.raises(InputError, match="there are no prefixes to choose from"):
        load_examples(config, "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, 'line 1: no column "who"'),
        ({"who": ""}, "line 1: .* expected the name of one prefix"),
        ({"who": ["a", "b"]}, "line 1: .* expected the name of one prefix"),
        ({"who": None}, "line 1: .* expected text"),
        ({"who": 3}, "line 1: .* expected text"),
    ],
)
def test_a_row_without_the_name_of_a_prefix_is_named(tmp_path, row, message):
    row = {"source": "x", "target": "y"} | row
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    config = DataConfig(path=str(tmp_path), prefix_column="who")
    with pytest.raises(InputError, match=message):
        load_examples(config, "test", ["a"])
