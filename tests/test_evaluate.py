"""Several stored prefixes scored in one go, from the command line."""

import json
import re

import jax
import pytest
from rounding import SUM

from prefix_jax.cli import main
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.storage.artifact import save_prefix


@pytest.fixture(scope="module")
def folders(backbone, model_folder, tmp_path_factory):
    """Two stored prefixes of different lengths."""
    folder = tmp_path_factory.mktemp("prefixes")
    for number, name in enumerate("ab"):
        config = PrefixConfig(init="random", length=2 + number)
        prefix = init_prefix(backbone, config, key=jax.random.key(number))
        save_prefix(folder / name, prefix, backbone=backbone)
    return folder


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    """Four test rows, the first and the last of which name the prefix a."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "test.jsonl").open("w") as file:
        for number, name in enumerate("abba"):
            source = f"name : Mill {number}"
            row = {"source": source, "target": "The mill is old.", "who": name}
            file.write(json.dumps(row) + "\n")
    path = folder / "recipe.py"
    path.write_text(
        "from prefix_jax.config import *\n"
        f"config = Config(backbone=BackboneConfig({str(model_folder)!r}), "
        f"data=DataConfig(path={str(folder)!r}, max_length=48, buckets=(48,)), "
        "decode=DecodeConfig(max_new_tokens=3), mesh=MeshConfig(data=1))\n"
    )
    return path


@pytest.fixture
def evaluate(recipe, tmp_path, capsys):
    """Run the command; gives the status, what it printed and what it wrote."""

    def run(*options):
        with pytest.raises(SystemExit) as exit:
            main(["evaluate", str(recipe), "--workdir", str(tmp_path), *options])
        printed = capsys.readouterr()
        files = {path.name: path.read_text() for path in tmp_path.glob("*.json*")}
        return exit.value.code, printed.out + printed.err, files

    return run


def both(folders):
    return ["--prefix", f"a={folders / 'a'}", "--prefix", str(folders / "b")]


@pytest.mark.slow
def test_without_a_column_each_is_scored_on_every_row(evaluate, folders):
    code, printed, files = evaluate(*both(folders))
    assert code == 0, printed
    first, second = (line for line in printed.splitlines() if "loss" in line)
    assert first.startswith("test, a: loss") and second.startswith("test, b: loss")
    for name in "ab":
        code, _, alone = evaluate("--prefix", f"alone={folders / name}")
        assert alone["outputs_test_alone.jsonl"] == files[f"outputs_test_{name}.jsonl"]
        found = json.loads(files[f"scores_test_{name}.json"])
        expected = json.loads(alone["scores_test_alone.json"])
        assert found["loss"] == pytest.approx(expected["loss"], rel=SUM["rtol"])
        assert found["sources"] == expected["sources"] == 4


def test_with_a_column_each_is_scored_on_its_rows(evaluate, folders):
    code, printed, files = evaluate(*both(folders), "--data.prefix-column", "who")
    assert code == 0, printed
    for name, sources in {"a": [0, 3], "b": [1, 2]}.items():
        lines = files[f"outputs_test_{name}.jsonl"].splitlines()
        written = [json.loads(line)["source"] for line in lines]
        assert written == [f"name : Mill {number}" for number in sources]
    limited = evaluate(*both(folders), "--data.prefix-column", "who", "--limit", "1")
    assert "(1 source, " in limited[1]


def test_names_that_do_not_fit_are_explained(evaluate, folders, recipe, tmp_path):
    column = ["--data.prefix-column", "who"]
    a, b = (f"{folders / name}" for name in "ab")
    for options, message in (
        ([*column, "--prefix", f"a={a}"], "test.jsonl, line 2: there is no prefix"),
        ([*column, "--prefix", f"a={a}"], 'prefix "b"; expected one of a'),
        ([*column, *both(folders), "--prefix", f"c={a}"], "no row of test names .* c"),
        ([*both(folders), "--data.prefix-column", "whom"], 'did you mean "who"'),
        ([*column, "--which", "none"], "there are no prefixes to choose from"),
        (["--prefix", f"a={a}", "--prefix", f"a={b}"], 'two prefixes are called "a"'),
        (["--prefix", f"best={a}"], "cannot name its files"),
        (["--prefix", f"x/y={a}"], "cannot name its files"),
        (["--prefix", "a=nowhere"], "nowhere does not exist"),
        (["--prefix", a, "--which", "last"], "--which last is of the run"),
        (["--prefix", a, "--workdir", f"{recipe}"], "is a file; give a folder"),
        ([*column, "--data.task", "language_modelling"], "only rows of"),
    ):
        code, printed, _ = evaluate(*options)
        assert code == 2 and "Traceback" not in printed
        assert re.search(message, printed), printed
