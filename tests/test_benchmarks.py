"""The scripts in benchmarks/ measure what they say."""

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
from conftest import REPOSITORY
from rounding import SUM

from prefix_jax.learning.split import count, leaf_names
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.loading import END, load_config

BENCHMARKS = REPOSITORY / "benchmarks"
FEATURES = "name[Blue Spice], area[riverside]"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a benchmark on a tiny backbone and gives the JSON that it wrote."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name: str, *arguments: str) -> dict:
        out = tmp_path / f"{name}.json"
        common = ["--shape", "tiny", "--rounds", "2", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *common, *arguments])
        importlib.import_module(name).main()
        report = json.loads(out.read_text())
        assert report["benchmark"] == name
        assert report["settings"]["shape"] == "tiny"
        assert {"machine", "devices", "versions"} <= report.keys()
        # Results are published: no place of the machine belongs in them.
        assert str(tmp_path) not in out.read_text()
        return report

    return run


@pytest.fixture
def e2e(tmp_path) -> str:
    """E2E's files with a handful of examples."""
    folder = tmp_path / "e2e"
    folder.mkdir()
    for name in ("trainset", "devset", "testset_w_refs"):
        lines = [f'"{FEATURES}",Blue Spice no. {i} is by the river.' for i in range(9)]
        (folder / f"{name}.csv").write_text("\n".join(["mr,ref", *lines, ""]))
    return str(folder)


COSTS = {"seconds", "rounds", "cpu_seconds", "tokens_per_second", "operations"}
COSTS |= {"memory", "measured_peak"}
SMALL = ["--batch", "2", "--length", "16", "--steps", "1"]


def test_scaling_varies_one_thing_at_a_time(run, tmp_path):
    picture = tmp_path / "scaling.png"
    asked = ["--axes", "batch", "--batch-values", "1", "3", "--plot", str(picture)]
    report = run("scaling", *SMALL, *asked, "--fit-length", "0")
    rows = report["axes"]["batch"]
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        assert row.keys() - {"batch"} == COSTS
        assert len(row["rounds"]) == 2 and row["seconds"] > 0
        memory = row["memory"]
        assert memory["total"] > memory["arguments"] > memory["results"]
        # The new state lies where the old one did.
        assert memory["aliased"] > 0.9 * memory["results"]
    assert rows[1]["operations"] == 3 * rows[0]["operations"]
    assert rows[1]["memory"]["total"] > rows[0]["memory"]["total"]
    assert report["lines"]["batch"].keys() == {"seconds", "cpu_seconds", "bytes"}
    assert "largest_batch" not in report
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_scaling_over_devices_and_into_memory(run):
    asked = ["--axes", "devices", "--devices-values", "1", "2", "--memory", "0.1"]
    report = run("scaling", *SMALL, *asked, "--fit-length", "64")
    one, two = report["axes"]["devices"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert two["memory"]["temporary"] < one["memory"]["temporary"]
    assert any("simulated" in note for note in report["notes"])
    fit = report["largest_batch"]
    assert (fit["gigabytes"], fit["whose"], fit["length"]) == (0.1, "asked for", 64)
    rows = {(row["remat"], row["chunked"]): row for row in fit["rows"]}
    assert all(0 < row["bytes"] <= 1e8 for row in rows.values())
    batch = {saved: row["batch"] for saved, row in rows.items()}
    # Each saves memory, and both together the most.
    assert 0 < batch[False, False] < batch[False, True] < batch[True, True]
    assert batch[False, False] < batch[True, False] < batch[True, True]


@pytest.mark.parametrize("limit", [0, 10, 49, 100, 1000])
@pytest.mark.parametrize("grows", ["by a line", "by steps", "to a refusal"])
def test_the_largest_batch_is_found(run, monkeypatch, grows, limit):
    scaling, steps = map(importlib.import_module, ("scaling", "steps"))
    needs = {
        "by a line": lambda rows: 10 + 3 * rows,
        "by steps": lambda rows: 50 * (rows // 8) + rows,
        "to a refusal": lambda rows: rows if rows < 40 else math.inf,
    }[grows]
    monkeypatch.setattr(scaling, "_total", lambda work: needs(work.batch))
    work = steps.Work(GPT2Config(), "float32", batch=1, length=8, prefix=1)
    most = max(rows for rows in range(500) if not rows or needs(rows) <= limit)
    found, needed = scaling.largest_batch(work, limit)
    assert (found, needed) == (most, needs(most) if most else 0)


@pytest.mark.slow
def test_methods_are_related_to_full_fine_tuning(run, tmp_path):
    picture = tmp_path / "methods.png"
    report = run("methods", *SMALL, "--plot", str(picture))
    rows, ratios = report["methods"], report["relative_to_full"]
    assert rows.keys() == ratios.keys() == {"prefix", "top2", "full"}
    tiny = load_config("tiny")
    whole = count(jax.eval_shape(lambda: GPT2(tiny, key=jax.random.key(0))))
    numbers = 2 * tiny.n_layer * tiny.n_embd * report["settings"]["prefix_length"]
    for method, trained in {"prefix": numbers, "full": whole}.items():
        row = rows[method]
        assert row.keys() >= COSTS
        assert row["trained"] == trained
        # AdamW keeps two f32 numbers for each, and counts its steps.
        assert 0 <= row["optimizer_bytes"] - 8 * trained <= 16
        # f32, and the file's own header.
        assert 4 * trained < row["stored_bytes"] < 4 * trained + 10_000
    assert ratios["prefix"]["operations"] < 1 == ratios["full"]["operations"]
    assert rows["prefix"]["memory"]["total"] < rows["full"]["memory"]["total"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("results/*/cpu.json")))
def test_what_was_measured_can_be_drawn(run, tmp_path, path):
    report = json.loads(path.read_text())
    picture = tmp_path / "picture.png"
    importlib.import_module("plots").draw(report, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_train_step_compares_its_sides(run, e2e, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(importlib.import_module("operations"), "SIZES", (64,))
    picture = tmp_path / "train_step.png"
    few = [
        "--pack",
        "64",
        "--batch-size",
        "6",
        "--examples",
        "6",
        "--plot",
        str(picture),
    ]
    report = run("train_step", "--e2e", e2e, *few)
    rates = report["examples_per_second"]
    sides = {"ours", "peft", "peft_kept", "torch"}
    assert rates.keys() == report["rounds"].keys() == report["peak_bytes"].keys()
    assert rates.keys() == sides
    assert report["first_step_seconds"].keys() == {*sides, "ours, warm"}
    assert min(rates.values()) > 0
    assert 0 < report["input"]["seconds_of_a_batch"] < 1
    assert all(len(rounds) == 2 for rounds in report["rounds"].values())
    assert report["versions"].keys() >= {"jax", "torch", "peft"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_train_step_on_random_texts(run, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(importlib.import_module("operations"), "SIZES", (64,))
    few = ["--length", "40", "--batch-size", "2", "--examples", "2"]
    report = run("train_step", *few, "--sides", "ours", "torch", "--together")
    for side in ("ours", "torch"):
        assert report["tokens_per_second"][side] == pytest.approx(
            40 * report["examples_per_second"][side]
        )


def test_train_step_asks_for_texts(run, capsys):
    with pytest.raises(SystemExit):
        run("train_step")
    assert "--e2e FOLDER or --length TOKENS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("benchmark", "options", "message"),
    [
        ("methods", ["--rounds", "0"], "'0'; expected a whole number >= 1"),
        ("methods", ["--batch", "-1"], "'-1'; expected a whole number >= 1"),
        ("methods", ["--plot", "nowhere/x.png"], "nowhere is no folder"),
        ("methods", ["--plot", "."], ". is a folder; expected a file"),
        ("scaling", ["--memory", "0"], "--memory 0.0; expected GB above 0"),
        ("scaling", ["--axes", "--fit-length", "0"], "leaves nothing to do"),
        ("train_step", ["--length", "9", "--pack", "x"], "'x'; expected a whole"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_measured(
    run, capsys, benchmark, options, message
):
    with pytest.raises(SystemExit) as stop:
        run(benchmark, *options)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_what_the_user_can_mend_is_said_in_a_line(run, e2e, monkeypatch, capsys):
    """Rows too long for the shape; a tokenizer of more tokens than the shape has."""
    reports, texts = map(importlib.import_module, ("reports", "texts"))
    small = GPT2Config(vocab_size=50)
    monkeypatch.setattr(texts, "backbone_config", lambda name: small)
    for arguments, message in (
        (("methods", *SMALL, "--length", "600"), "this shape has 512"),
        (("train_step", "--e2e", e2e), "tiny's are 0 to 49; use the tokenizer"),
    ):
        with pytest.raises(SystemExit) as stop:
            reports.run(lambda given=arguments: run(*given))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("error: ") and message in said


def test_train_step_names_the_packages_that_are_not_there(run, monkeypatch, capsys):
    module = importlib.import_module("train_step")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run("train_step", "--length", "8")
    assert "the other sides need torch and peft" in capsys.readouterr().err


@pytest.mark.slow
def test_decode_compares_texts_and_prefixes(run, e2e):
    pytest.importorskip("peft")
    few = ["--prompts", "2", "--new-tokens", "3", "--batch-sizes", "2"]
    report = run("decode", "--e2e", e2e, *few, "--beams", "2", "--prefixes", "1", "2")
    for kind in ("greedy", "beam"):
        assert report[kind]["same_texts"] == 1
        assert report[kind]["sequences_per_second"].keys() == {"ours", "peft"}
    assert report["prefixes"]["1"]["relative_to_one"] == 1
    assert report["prompt_tokens"]["max"] > 0


def test_operations_are_those_of_the_matrices(run):
    """Against a count of the parameters: 4n a token with a prefix, 6n in full."""
    operations = importlib.import_module("operations").operations
    shape = GPT2Config(vocab_size=50, n_embd=8, n_layer=4, n_head=2)
    backbone = jax.eval_shape(lambda: GPT2(shape, key=jax.random.key(0)))
    matrices = sum(
        leaf.size
        for name, leaf in zip(
            leaf_names(backbone), jax.tree.leaves(backbone), strict=True
        )
        if name.startswith("blocks") and name.endswith("kernel")
    )
    given = shape, np.array([3, 5]), 2.0, 7
    count = {name: operations(*given, name) for name in ("prefix", "top2", "full")}
    assert count["prefix"]["layers"] == 4 * matrices * 4
    assert count["full"]["layers"] == 6 * matrices * 4
    assert count["top2"]["layers"] == (2 + 4 / 2) * matrices * 4
    assert count["full"]["head"] == 1.5 * count["prefix"]["head"]
    assert count["prefix"]["attention"] == count["full"]["attention"]
    assert count["top2"]["attention"] == count["full"]["attention"] * 2 / 3


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
