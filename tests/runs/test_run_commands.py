"""Whole runs from the command line."""

import io
import json

import jax
import numpy as np
import pytest

from prefix_jax.model.loading import load_backbone
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.storage.artifact import load_prefix, save_prefix
from runs.support import recipe, run_cli


def test_generate_from_arguments_file_and_stdin(
    finished, tmp_path, capsys, monkeypatch
):
    prompts = ["name : Mill 1 | area : hill", "name : Mill 2 | area : harbour"]
    options = ["--prefix", str(finished), "--decode.max-new-tokens", "4"]
    assert run_cli("generate", *prompts, *options) == 0
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 2
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    assert run_cli("generate", "--file", str(tmp_path / "prompts.txt"), *options) == 0
    assert capsys.readouterr().out == first
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts)))
    assert run_cli("generate", *options) == 0
    assert capsys.readouterr().out == first


def test_one_batch_with_several_prefixes(config, finished, tmp_path, capsys):
    """Each row as its own prefix would write it alone."""
    other = tmp_path / "other"
    model = load_backbone(config.backbone.name)
    prefix = init_prefix(model, PrefixConfig(length=2), key=jax.random.key(0))
    save_prefix(
        other,
        prefix,
        backbone=model,
        task="table_to_text",
        base_model_name=config.backbone.name,
    )
    prompts = ["name : Mill 1 | area : hill", "name : Mill 2 | area : harbour"]
    alone = {}
    for name, folder in (("a", finished), ("b", other)):
        options = ["--prefix", str(folder), "--decode.max-new-tokens", "4"]
        assert run_cli("generate", *prompts, *options) == 0
        alone[name] = capsys.readouterr().out.splitlines()
    rows = [(0, "b"), (1, "a"), (0, "a"), (1, "b")]
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": prompts[i], "prefix": name}) + "\n"
            for i, name in rows
        )
    )
    both = ["--prefix", f"a={finished}", "--prefix", f"b={other}"]
    options = [*both, "--decode.max-new-tokens", "4", "--file", str(file)]
    assert run_cli("generate", *options, "--json") == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [" ".join(alone[name][i].split()) for i, name in rows]
    assert [" ".join(row["text"].split()) for row in written] == expected
    assert [row["prefix"] for row in written] == [name for _, name in rows]
    assert all(row["log_prob"] < 0 for row in written)

    file.write_text(json.dumps({"prompt": "x", "prefix": "c"}))
    assert run_cli("generate", *options) == 2
    assert 'there is no prefix "c"' in capsys.readouterr().err
    file.write_text(json.dumps({"prompt": "x"}))
    assert run_cli("generate", *options) == 2
    assert "does not name its prefix" in capsys.readouterr().err


def test_a_text_streams(finished, capsys):
    prompt = "name : Mill 1 | area : hill"
    options = ["--prefix", str(finished), "--decode.max-new-tokens", "9"]
    assert run_cli("generate", prompt, *options) == 0
    whole = capsys.readouterr().out
    assert run_cli("generate", prompt, *options, "--stream", "True") == 0
    assert capsys.readouterr().out.split() == whole.split()


@pytest.mark.slow
def test_command_line_trains_with_overrides(config, tmp_path, capsys):
    path = recipe(tmp_path / "recipe.py", config)
    workdir = tmp_path / "run"
    options = ["--workdir", str(workdir), "--train.steps", "1", "--prefix.length", "3"]
    assert run_cli("train", path, *options) == 0
    kv = load_prefix(workdir / "best", load_backbone(config.backbone.name))
    assert kv.length == 3
    ways = [[path, *options], [*options[:2], path, *options[2:]], options[:2]]
    scores = []
    for way in ways:
        capsys.readouterr()
        assert run_cli("evaluate", *way, "--split", "validation") == 0
        scores.append(capsys.readouterr().out)
    assert "BLEU" in scores[0] and set(scores) == {scores[0]}
    decode = ["--decode.max-new-tokens", "3", "--limit", "2"]
    assert run_cli("evaluate", *decode, f"--workdir={workdir}") == 0
    assert "2 sources" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ["--prefix.kind", "embedding"],
        ["--prefix.placement", "infix", "--prefix.layers", "0", "2"],
        [
            *("--prefix.gate", "--prefix.position-mode", "unshifted"),
            *("--prefix.lengths", "4", "0", "2", "--prefix.length", "4"),
        ],
    ],
    ids=["embedding", "infix", "gate"],
)
def test_kinds_of_prefix_by_the_command_line(config, tmp_path, capsys, kind):
    """Train, score, write, look at, cut, and start another run from what was cut."""
    path = recipe(tmp_path / "recipe.py", config)
    run, cut, next_run = (str(tmp_path / name) for name in ("run", "cut", "next"))
    steps = ["--train.steps", "2", "--train.eval-every", "2"]
    kind = [*kind, "--prefix.nested", "2"]
    assert run_cli("train", path, *steps, *kind, "--workdir", run) == 0
    few = ["--decode.max-new-tokens", "3", "--limit", "2"]
    assert run_cli("evaluate", "--workdir", run, *few) == 0
    assert "BLEU" in capsys.readouterr().out
    assert run_cli("shorten", run, "--length", "2", "--out", cut) == 0
    assert "not trained for" not in capsys.readouterr().out
    beams = ["--decode.method", "beam", "--decode.max-new-tokens", "3"]
    for folder in (run, cut):
        prompt = "name : Mill 1 | area : hill"
        assert run_cli("generate", prompt, "--prefix", folder, *beams) == 0
        assert run_cli("inspect", folder, "--text", "The mill") == 0
    kind = [word if word != "4" else "2" for word in kind[:-2]]
    kind += ["--prefix.init", "prefix", "--prefix.start", cut]
    if "--prefix.length" not in kind:
        kind += ["--prefix.length", "2"]
    assert run_cli("train", path, *steps, *kind, "--workdir", next_run) == 0
    backbone = load_backbone(config.backbone.name)
    start, found = (load_prefix(tmp_path / n, backbone) for n in ("cut", "next/last"))
    assert start.length == found.length == 2
    assert np.abs(start.values - found.values).max() < 1  # two steps away at most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'did you mean "train"'),
        (["train"], "needs a recipe first"),
        (["train", "nowhere.py"], "recipe nowhere.py does not exist"),
        (["train", "RECIPE", "--prefix.lenght", "3"], "--prefix.length"),
        (["train", "RECIPE", "--prefix.length", "0"], "prefix.length is 0"),
        (["train", "RECIPE", "--prefix.length", "60"], "lower data.max_length"),
        (["train", "RECIPE", "--prefix.layers", "3"], "has 3 layers, 0 to 2"),
        (
            ["shorten", "nowhere", "--length", "2", "--out", "x"],
            "nowhere does not exist",
        ),
        (["train", "RECIPE", "--data.path", "nowhere"], "nowhere"),
        (["train", "RECIPE", "--train.batch-size", "0"], "train.batch_size"),
        (["train", "."], ". is no file; a recipe is a Python file"),
        (["train", "RECIPE", "--workdir", "recipe.py"], "recipe.py is a file"),
        (["train", "RECIPE", "--workdir", "/proc/x"], "cannot write in /proc/x"),
        (["compare", "RECIPE", "--methods"], "there is no method to compare"),
        (["compare", "RECIPE", "--limit", "-1"], "limit is -1; expected"),
        (["evaluate", "RECIPE", "--limit", "0"], "limit is 0; expected"),
        (["evaluate", "RECIPE", "--workdir", "nowhere"], "nowhere"),
        (["evaluate", "--workdir", "nowhere"], "nowhere holds no run"),
        (["evaluate"], "runs/latest holds no run"),
        (["evaluate", "--workdir", "recipe.py"], "recipe.py is a file"),
        (["compare", "RECIPE", "--workdir", "recipe.py"], "recipe.py is a file"),
        (["evaluate", "--workdir"], "--workdir has no value; expected a path"),
        (["generate", "text", "--prefix", "nowhere"], "nowhere"),
        (["generate", "text", "--backbone", "tinny"], "did you mean"),
        (["generate", "text", "--file", "x.txt"], "not both"),
        (["generate", "x", "--json", "--stream", "True"], "not JSON"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_gets_wrong_is_explained(
    config, tmp_path, capsys, arguments, message, monkeypatch
):
    path = recipe(tmp_path / "recipe.py", config)
    monkeypatch.chdir(tmp_path)
    code = run_cli(*[path if word == "RECIPE" else word for word in arguments])
    assert code == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).split())
    assert "Traceback" not in captured.err
