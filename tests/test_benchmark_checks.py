"""The benchmarks that check rather than time: loss, learning, parity, damage, kills."""

import contextlib
import importlib
import importlib.util
import json
import math
import runpy
import sys

import jax
import numpy as np
import pytest
from conftest import BENCHMARKS
from rounding import SUM

from prefix_jax.model.loading import END


def test_the_fuzzer_changes_one_file(monkeypatch):
    """By values where it is JSON, so that most cases get past the parser."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fuzz, targets = map(importlib.import_module, ("fuzz", "fuzz_targets"))
    files = [b'{"a": {"b": [1, "x"]}}', b"no JSON at all"]
    case, whole = targets.MARK.join(files), 0
    for seed in range(300):
        given = case, targets.MARK, 1000, seed, lambda part, room: part[:-1]
        changed = fuzz.mutate(*given)
        assert changed == fuzz.mutate(*given) and len(changed) <= 1000
        if changed.endswith(files[1]) and changed != case:
            with contextlib.suppress(ValueError):
                json.loads(changed.removesuffix(targets.MARK + files[1]))
                whole += 1
    assert whole > 50


def test_perplexity_is_that_of_every_window(
    backbone, tokenizer, model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    documents = [
        "The mill by the river is old.",
        "name : Blue Spice | area : riverside",
    ] * 20
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{document}\n{END}\n" for document in documents))
    arguments = ["perplexity.py", "--text", str(text), "--backbone", str(model_folder)]
    if importlib.util.find_spec("torch"):
        arguments.append("--torch")
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(BENCHMARKS / "perplexity.py"), run_name="__main__")
    scores = json.loads(capsys.readouterr().out)

    ids = [token for one in documents for token in [*tokenizer.encode(one), 0]]
    length = backbone.config.n_positions
    windows = [
        ids[start : start + length] for start in range(0, len(ids) - length + 1, length)
    ]
    nll = 0.0
    for window in windows:
        chances = jax.nn.log_softmax(backbone(jax.numpy.asarray([window[:-1]]))[0])
        nll -= sum(float(chances[i, token]) for i, token in enumerate(window[1:]))
    tokens = sum(len(window) - 1 for window in windows)
    written = "".join(tokenizer.decode(window[1:]) for window in windows)
    size = len(written.replace(END, "").encode())
    assert len(windows) > 1
    assert (scores["tokens"], scores["bytes"]) == (tokens, size)
    assert scores["loss_per_token"] == pytest.approx(nll / tokens, rel=SUM["rtol"])
    if "--torch" in arguments:
        assert scores["torch_loss_per_token"] == pytest.approx(
            nll / tokens, rel=SUM["rtol"]
        )
    assert scores["perplexity_per_byte"] == pytest.approx(
        math.exp(nll / size), rel=SUM["rtol"]
    )


def test_peft_learns_the_same(e2e, model_folder, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recipe, out = tmp_path / "recipe.py", tmp_path / "learning.json"
    recipe.write_text(
        "from prefix_jax import *\nconfig = Config("
        f'backbone=BackboneConfig("{model_folder}"), prefix=PrefixConfig(length=3), '
        'data=DataConfig(source="e2e", max_length=40, pack=40), '
        "optim=OptimConfig(learning_rate=0.1), train=TrainConfig(batch_size=2))"
    )
    arguments = ["learning.py", str(recipe), "--e2e", e2e, "--steps", "4"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(out)])
    importlib.import_module("learning").main()
    report = json.loads(out.read_text())
    losses = np.array([report["losses"]["ours"], report["losses"]["peft"]])
    assert losses.shape == (2, 4) and losses[0, 0] - losses[0, -1] > 0.1
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert report["largest_difference"] == abs(losses[0] - losses[1]).max()
    assert str(tmp_path) not in out.read_text()


def test_the_table_of_parity(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    logits = importlib.import_module("logits")
    some = {name: logits.VARIANTS[name] for name in ("GPT-2", "Qwen3")}
    monkeypatch.setattr(logits, "VARIANTS", some)
    table = tmp_path / "parity.md"
    monkeypatch.setattr(sys, "argv", ["logits.py", "--markdown", str(table)])
    logits.main()
    rows = [line.split("|")[1:-1] for line in table.read_text().splitlines()[2:]]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == [
        (name, prefix) for name in some for prefix in ("none", str(logits.PREFIX))
    ]
    for *_, largest, whole, right, left in rows:
        assert float(largest) > 5
        assert all(0 < float(x) < 1e-5 * float(largest) for x in (whole, right, left))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_is_found_or_harmless(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    out = tmp_path / "damage.json"
    # Half of the files can be damaged and nothing is lost; which are hit is chance,
    # their names being random: of 16 some matter, but for once in 60,000 runs.
    importlib.import_module("damage").main(["--times", "16", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["wrong"] == []
    for kind in ("flipped bit", "cut short"):
        assert sum(report[kind].values()) == 16 and report[kind]["detected"] > 0


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """The short form of a hundred kills."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    out = tmp_path / "kill_resume.json"
    kill_resume = importlib.import_module("kill_resume")
    kill_resume.main(["--kills", "2", "--steps", "12", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["kills"] == report["resumed"] == 2
    assert report["runs"] == report["equal"] > 0 and report["different"] == []
