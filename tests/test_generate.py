"""What the command line's `generate` makes of a stored prefix and of prompts."""

import dataclasses
import io
import json
import re

import jax
import pytest
from folders import as_by_peft, unseal

from prefix_jax.config import DecodeConfig
from prefix_jax.data.e2e import linearise
from prefix_jax.data.tokens import encode_prompts
from prefix_jax.decoding.generate import NEIGHBOURS, generate
from prefix_jax.decoding.request import Request
from prefix_jax.errors import InputError
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.generate import open_writer
from prefix_jax.runs.prompts import Line, check_lines, read_prompts
from prefix_jax.storage.artifact import save_prefix
from prefix_jax.storage.card import card
from prefix_jax.storage.metadata import read_metadata

DECODE = DecodeConfig(max_new_tokens=6)
MEANING = "name[Mill], area[riverside]"


def write(prompts, *, prefix, task=None, decode):
    """The texts, as the command line would print them."""
    writer = open_writer([str(prefix)], None, task)
    written = writer.write([Line(prompt) for prompt in prompts], decode)
    return [sequences[0].text for sequences in written]


@pytest.fixture(scope="module")
def prefix(backbone):
    config = PrefixConfig(init="random", length=3)
    return init_prefix(backbone, config, key=jax.random.key(3))()


@pytest.fixture
def store(tmp_path, backbone, prefix, model_folder):
    """Store the prefix with what it says of its prompts; gives the folder."""

    def make(**says):
        says.setdefault("base_model_name", str(model_folder))
        save_prefix(tmp_path / "p", prefix, backbone=backbone, **says)
        return tmp_path / "p"

    return make


def test_a_backbone_that_is_gone_is_named_with_its_prefix(store, tmp_path):
    folder = store(base_model_name=str(tmp_path / "gone"))
    with pytest.raises(InputError, match=f"{folder} names .*gone.*--backbone"):
        open_writer([str(folder)], None, None)


@pytest.fixture
def write_after(backbone, tokenizer, prefix):
    """What the prefix writes after a prompt, text or tokens."""

    def decode(prompt):
        [written] = generate(
            backbone, tokenizer, [prompt], prefix=prefix, decode=DECODE
        )
        return [written.strip()]

    return decode


@pytest.fixture
def expected(tokenizer, write_after):
    """What the prefix writes after text, or after a source and the separator."""

    def decode(text, is_source):
        return write_after(encode_prompts([text], tokenizer)[0] if is_source else text)

    return decode


def test_a_prefix_says_what_its_prompts_are(store, expected):
    source, text = expected(MEANING, True), expected(MEANING, False)
    linearised = expected(linearise(MEANING), True)
    assert len({*source, *text, *linearised}) == 3
    assert write([MEANING], prefix=store(task="table_to_text"), decode=DECODE) == source
    assert write([MEANING], prefix=store(), decode=DECODE) == text
    folder = store(task="table_to_text", e2e=True)
    assert write([MEANING], prefix=folder, decode=DECODE) == linearised
    assert write([linearise(MEANING)], prefix=folder, decode=DECODE) == linearised
    with pytest.raises(
        InputError, match=r"prompt .*: .*not an E2E meaning representation"
    ):
        write(["name[Mill], area"], prefix=folder, decode=DECODE)
    as_text = write([MEANING], prefix=folder, task="language_modelling", decode=DECODE)
    assert as_text == text


def test_prompts_have_the_separator_of_the_training(store, tokenizer, write_after):
    recipe = {"data": {"separator": "\n"}}
    folder = store(task="table_to_text", recipe=recipe)
    [prompt] = encode_prompts(["Mill"], tokenizer, "\n")
    assert write(["Mill"], prefix=folder, decode=DECODE) == write_after(prompt)
    assert "`` '\\n' `` after it" in card(read_metadata(folder), None, 0)
    folder = store(task="table_to_text", recipe={"data": {"separator": 5}})
    with pytest.raises(InputError, match=r"data\.separator is 5"):
        write(["Mill"], prefix=folder, decode=DECODE)
    for task, name, value in (
        ("classification", "data.labels", 5),
        ("classification", "data.labels", None),
        ("classification", "data.labels", [1, 2]),
        ("classification", "score.content_free", 1.5),
        ("classification", "score.label_likelihood", []),
    ):
        section, _, field = name.partition(".")
        recipe = {"data": {"labels": ["0=a", "1=b"]}}
        recipe[section] = {**recipe.get(section, {}), field: value}
        folder = store(task=task, recipe=recipe)
        with pytest.raises(InputError, match=re.escape(name)):
            open_writer([str(folder)], None, None)


def test_the_record_of_a_later_version_does_no_harm(store, expected):
    recipe = {"train": {"new_field": 1}, "new_section": {}}
    folder = store(task="table_to_text", recipe=recipe)
    own = folder / "prefix_jax.json"
    unseal(folder)
    own.write_text(json.dumps(json.loads(own.read_text()) | {"new": {"a": 1}}))
    assert write(["Mill"], prefix=folder, decode=DECODE) == expected("Mill", True)


def test_a_task_of_a_later_version_is_named(store, expected):
    folder = store()
    own = folder / "prefix_jax.json"
    unseal(folder)
    own.write_text(json.dumps(json.loads(own.read_text()) | {"task": "poetry"}))
    with pytest.raises(InputError, match=r"task 'poetry'.*knows table_to_text.*--task"):
        write(["Mill"], prefix=folder, decode=DECODE)
    written = write(["Mill"], prefix=folder, task="table_to_text", decode=DECODE)
    assert written == expected("Mill", True)


def test_a_prefix_of_peft_continues_text(store, expected, model_folder):
    folder = store(task="table_to_text")
    as_by_peft(folder)
    assert write(["Mill"], prefix=folder, decode=DECODE) == expected("Mill", False)


def test_a_prompt_that_is_too_long_is_not_cut(store):
    with pytest.raises(InputError, match=r"prefix 3 \+ prompt \d+ \+ .* exceeds"):
        write(["Mill " * 40], prefix=store(task="table_to_text"), decode=DECODE)


def test_a_line_with_a_seed_is_sampled_as_if_alone(store, tmp_path):
    writer = open_writer([str(store())], None, None)
    sampled = dataclasses.replace(DECODE, method="sample")
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "The mill"}, {"prompt": "The river", "seed": 5}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = read_prompts(file)
    assert lines == [Line("The mill"), Line("The river", seed=5)]
    [_, [written]] = writer.write(lines, sampled)
    [[alone]] = writer.write(lines[1:], sampled)
    assert alone.tokens == written.tokens
    assert "".join(writer.stream(lines[1], sampled)).strip() == written.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"prompt": "x", "seed": "5"}',
            'line 1: seed is "5"; expected a whole number',
        ),
        ('{"prompt": "x", "seed": -1}', "line 1: seed is -1; expected .* from 0 to"),
        ('{"prompt": "x", "prefix": 5}', "line 1: prefix is 5; expected text, or None"),
        ('{"prompt": "x", "sed": 5}', 'unknown field "sed"; did you mean "seed"'),
        ('{"prefix": "x"}', "line 1: expected .* got"),
        ("[1]", "line 1: expected .* got"),
        ("{", "line 1: not valid JSON"),
    ],
)
def test_a_row_that_is_no_prompt(tmp_path, row, message):
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "rows.jsonl")


def test_each_text_is_there_before_the_last_is_begun(store, monkeypatch):
    written, write = [], Request.write

    def count(self, batch):
        written.append(batch)
        return write(self, batch)

    monkeypatch.setattr(Request, "write", count)
    writer = open_writer([str(store())], None, None)
    lines = [Line(f"The mill {number}") for number in range(9)]
    texts = writer.write(lines, dataclasses.replace(DECODE, batch_size=1))
    next(texts)
    assert len(written) <= NEIGHBOURS < len(lines)
    assert len([*texts]) == 8


def test_blank_lines_are_left_out_and_counted(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a mill\n\n  \na river\n\n")
    assert [line.prompt for line in read_prompts(tmp_path / "prompts.txt")] == [
        "a mill",
        "a river",
    ]
    assert "prompts.txt: 2 blank lines are left out" in capsys.readouterr().err


def test_prompts_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text(" \n\n")
    for file, message in (
        (tmp_path / "empty.txt", "empty.txt has no prompt"),
        (tmp_path / "nowhere.txt", "there is no file .*nowhere.txt"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            read_prompts(file)
    for data, message in ((b"", "standard input has no"), (b"a\n\xff", "not UTF-8")):
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(InputError, match=message):
            read_prompts(None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "x", "prefix": "c"}', 'line 2: there is no prefix "c"'),
        ('{"prompt": "x"}', "line 2 does not name its prefix; with several"),
        ('{"prompt": " ", "prefix": "a"}', "line 2: the prompt is empty"),
    ],
)
def test_a_row_that_cannot_be_written_is_named(tmp_path, row, message):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "x", "prefix": "a"}\n' + row + "\n")
    with pytest.raises(InputError, match=f"{file}, {message}"):
        check_lines(read_prompts(file), ["a", "b"])


def test_an_empty_prompt_is_refused_whatever_the_task(store):
    """Not only where it has no token: no source is empty in training."""
    for task in ("table_to_text", "language_modelling"):
        for prompt in ("", " "):
            with pytest.raises(InputError, match="the prompt is empty"):
                write([prompt], prefix=store(task=task), decode=DECODE)


def test_a_prompt_of_what_is_no_character_is_named(store):
    for task in ("table_to_text", "language_modelling"):
        with pytest.raises(InputError, match=r"prompt .*: '.?a\\ud800' has what is no"):
            write(["a\ud800"], prefix=store(task=task), decode=DECODE)


@pytest.mark.parametrize("name", [None, "rows.ndjson"])
def test_objects_are_read_however_they_come(tmp_path, monkeypatch, name):
    rows = [{"prompt": "a mill", "prefix": "b"}, {"prompt": "x"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    file = None
    if name is not None:
        file = tmp_path / name
        file.write_text(text)
    found = read_prompts(file)
    assert [(line.prompt, line.prefix) for line in found] == [
        ("a mill", "b"),
        ("x", None),
    ]
