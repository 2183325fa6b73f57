"""The benchmarks of speed and memory measure what they say."""

import dataclasses
import importlib
import importlib.util
import json
import math
import sys

import jax
import numpy as np
import pytest
from conftest import BENCHMARKS

from prefix_jax.learning.split import count, leaf_names
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.model.loading import load_config


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


@pytest.mark.slow
def test_a_side_that_fails_is_left_out_and_told_by_the_status(run, e2e, capfd):
    """The prefix is longer than the shape has positions."""
    with pytest.raises(SystemExit) as stop:
        run(
            "train_step",
            "--e2e",
            e2e,
            "--prefix-length",
            "600",
            "--sides",
            "ours",
            "--examples",
            "6",
        )
    assert stop.value.code == "no side is left; nothing was measured"
    said, errors = capfd.readouterr()
    assert "failed and left out, see above: ours" in said
    assert "600 leaves no room for text" in errors and "Traceback" not in errors


def test_a_packed_row_holds_the_longest_text(run, e2e, capsys):
    with pytest.raises(SystemExit):
        few = ["--sides", "ours", "--examples", "6"]
        run("train_step", "--e2e", e2e, "--pack", "3", *few)
    assert "--pack 3: the longest text has" in capsys.readouterr().err


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
        ("scaling", ["--batch", "4"], "--batch 4 cannot be split over 8 devices"),
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
        (
            ("train_step", "--e2e", e2e, "--sides", "ours"),
            "tiny's are 0 to 49; use the tokenizer",
        ),
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
    """Against a count of the parameters: 4n a token with a prefix, 6n in full, without
    what needs no gradient or no value."""
    operations = importlib.import_module("operations").operations
    shape = GPT2Config(vocab_size=50, n_embd=8, n_layer=4, n_head=2)
    backbone = jax.eval_shape(lambda: GPT2(shape, key=jax.random.key(0)))
    sizes = {
        name.split("/")[2]: leaf.size
        for name, leaf in zip(
            leaf_names(backbone), jax.tree.leaves(backbone), strict=True
        )
        if name.startswith("blocks") and name.endswith("kernel")
    }
    matrices = sum(sizes.values())
    # Of the last of four layers, for the 2 of 4 tokens without loss.
    last = 2 * (sizes["qkv"] / 3 + sizes["out"] + sizes["up"] + sizes["down"]) / 4
    first = 4 * sizes["qkv"] / 4
    # A row's last token is read by none.
    given = shape, np.array([4, 6]), 2.0, 7
    count = {name: operations(*given, name) for name in ("prefix", "top2", "full")}
    assert count["prefix"]["layers"] == 4 * (matrices * 4 - last) - 2 * first
    assert count["full"]["layers"] == 6 * (matrices * 4 - last)
    of_top2 = (2 + 4 / 2) * matrices * 4 - 6 * last - 2 * first
    assert count["top2"]["layers"] == of_top2
    assert count["full"]["head"] == 1.5 * count["prefix"]["head"]
    assert count["prefix"]["attention"] == count["full"]["attention"]
    assert count["top2"]["attention"] == count["full"]["attention"] * 2 / 3
    # With a single layer: attention's key and value of all 4, the rest of 2 of them; no
    # gradient of what it reads.
    alone = dataclasses.replace(shape, n_layer=1)
    key_value, others = 2 * 8 * 8, 8 * 8 + 8 * 8 + 2 * 8 * 32
    forward = 2 * (4 * key_value + 2 * others)
    backward = 2 * 2 * (8 * 8 + 2 * 8 * 32)
    found = operations(alone, *given[1:], "prefix")
    assert found["layers"] == forward + backward
