"""The page of `report`: whole, harmless, and true to the files that it is made of."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import unseal

from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import encode_examples
from prefix_jax.errors import InputError
from prefix_jax.runs.evaluation import write_evaluation
from prefix_jax.runs.folders import find_runs
from prefix_jax.runs.report import GENERATOR, report
from prefix_jax.scoring.classes import ClassReport
from prefix_jax.storage.artifact import load_prefix
from prefix_jax.storage.log import read_metrics
from runs.pages import SOURCES, evaluation, made, texts
from runs.support import run_cli

HOSTILE = "</p></style><script>alert('1')</script><img \"onerror='x'>&lt;"


def test_the_page_is_whole_and_loads_nothing(run, tmp_path):
    page = made(tmp_path, run, attention=True)
    assert not {"script", "link", "img", "iframe", "object"} & {
        tag for tag, _ in page.elements
    }
    for tag, own in page.elements:
        assert not any(name.startswith("on") for name in own)
        assert own.get("href", "#").startswith("#"), tag
        assert not {"src", "action", "srcset"} & own.keys()
    raw = (tmp_path / "page.html").read_text()
    assert "url(" not in raw and "@import" not in raw
    assert not re.search(r"https?://(?!www\.w3\.org/)", raw)
    [policy] = [own for own in page.all("meta") if "http-equiv" in own]
    assert policy["content"].startswith("default-src 'none'; style-src")
    assert all("scope" in own for own in page.all("th"))
    for svg in page.all("svg", role="img"):
        ids = {own.get("id") for _, own in page.elements}
        assert set(svg["aria-labelledby"].split()) <= ids


def test_the_same_runs_give_the_same_page(run, tmp_path):
    made(tmp_path, run)
    first = (tmp_path / "page.html").read_bytes()
    made(tmp_path, run)
    assert (tmp_path / "page.html").read_bytes() == first


def test_tables_say_what_the_files_say(run, backbone, tmp_path):
    head, names, row = made(tmp_path, run).tables[
        "What was trained, and what it scores"
    ]
    assert head == ["", "training", "test"]
    found = dict(zip(names[:8], row[:8], strict=True))
    trained = 2 * backbone.config.n_layer * backbone.config.n_embd * 4
    stored = (run / "best" / "adapter_model.safetensors").stat().st_size
    best = min(
        (line for line in read_metrics(run) if line["split"] == "validation"),
        key=lambda line: line["loss"],
    )
    whole = sum(np.size(x) for x in jax.tree.leaves(backbone))
    assert found == {
        "run": "mine",
        "method": "prefix-tuning",
        "prefix": "flat, 4",
        "trained": f"{trained:,}",
        "share": f"{trained / whole:.2%}",
        "stored": f"{stored / 1024:.0f} KiB",
        "best step": str(best["step"]),
        "validation loss": f"{best['loss']:.4f}",
    }
    assert dict(zip(names[8:], row[8:], strict=True)) == {
        "loss": "1.2500",
        "perplexity": "3.490",
        "BLEU": "12.35",
        "TER": "67.89",
        "sources": "2",
    }


def test_curves_have_a_point_for_every_logged_line(run, tmp_path):
    page = made(tmp_path, run)
    log = read_metrics(run)
    number = {s: sum(x["split"] == s for x in log) for s in ("train", "validation")}
    assert min(number.values()) > 2
    for kind, split in (("raw", "train"), ("smooth", "train"), ("validation",) * 2):
        lines = page.all("polyline", class_=kind)
        assert len(lines) == 2  # a wide and a narrow chart
        assert {len(line["points"].split()) for line in lines} == {number[split]}
    # Higher losses are drawn higher.
    heights = [
        float(point.split(",")[1])
        for point in page.all("polyline", class_="raw")[0]["points"].split()
    ]
    losses = [line["loss"] for line in log if line["split"] == "train"]
    assert np.corrcoef(heights, losses)[0, 1] < -0.99
    table = page.tables["Validation loss by step"]
    assert [row[1] for row in table[1:]] == [
        f"{line['loss']:.4f}" for line in log if line["split"] == "validation"
    ]


def test_hostile_text_is_text(run, tmp_path):
    folder = run.with_name("a<b onload=x>&amp;")
    run.rename(folder)
    record = json.loads((folder / "config.json").read_text())
    record["config"]["data"]["source_column"] = HOSTILE
    record["calls"][0]["versions"]["numpy"] = HOSTILE
    (folder / "config.json").write_text(json.dumps(record))
    rows = [{"source": HOSTILE, "text": HOSTILE, "references": [HOSTILE, "\ud800"]}]
    (folder / "outputs_test_best.jsonl").write_text(json.dumps(rows[0]) + "\n")
    classes = ClassReport.of([HOSTILE], [HOSTILE], [HOSTILE])
    scores = evaluation(classes=classes, subsets={HOSTILE: {"sources": 1, "bleu": 1.0}})
    (folder / "scores_test_best.json").write_text(json.dumps(scores.to_dict()))
    page = made(tmp_path, f"{HOSTILE.replace('=', '')}={folder}", command=HOSTILE)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "b"})
    assert not any("onload" in own or "onerror" in own for _, own in page.elements)
    assert page.text.count(" ".join(HOSTILE.split())) >= 10


def test_how_a_run_was_scored_is_said(run, tmp_path):
    result = evaluation(settings={"limit": 2, "decode.method": "beam"})
    write_evaluation(run, result, texts((SOURCES[0], "x"), (SOURCES[1], "y")))
    page = made(tmp_path, run)
    [table] = [t for name, t in page.tables.items() if name.startswith("How they were")]
    assert table[1] == ["mine, test", "limit 2, decode.method beam"]


def test_a_sweep_is_its_runs(run, tmp_path):
    """Those that are there, in the sweep's order, called after their settings."""
    names = ["prefix.length=4", "prefix.length=2", "prefix.length=8"]
    folder = tmp_path / "a_sweep"
    for name in names[:2]:
        shutil.copytree(run, folder / name)
    record = {"cells": [{"folder": name} for name in names]}
    (folder / "sweep.json").write_text(json.dumps(record))
    page = made(tmp_path, folder)
    table = next(t for name, t in page.tables.items() if name.startswith("What was"))
    assert [row[0] for row in table[2:]] == names[:2]
    outside = (
        json.dumps({"cells": [{"folder": name}]}) for name in ("../mine", "..", "")
    )
    for wrong in ("{}", '{"cells": []}', *outside):
        (folder / "sweep.json").write_text(wrong)
        with pytest.raises(InputError, match=r"sweep\.json is not what"):
            made(tmp_path, folder)


def test_subsets_and_classes(run, tmp_path):
    parts = {
        "seen": {"sources": 3, "bleu": 1.5, "ter": 2.5},
        "unseen": {"sources": 4, "bleu": 3.5, "ter": 4.5},
    }
    classes = ClassReport.of(["no", "no", "yes"], ["no", "yes", "yes"], ["no", "yes"])
    changed = evaluation(subsets=parts, classes=classes)
    write_evaluation(run, changed, texts((SOURCES[0], "no")))
    tables = made(tmp_path, run).tables
    assert tables["mine, test: subsets"][1:] == [
        ["seen", "3", "1.50", "2.50"],
        ["unseen", "4", "3.50", "4.50"],
        ["all", "2", "12.35", "67.89"],
    ]
    assert tables["mine, test: confusion, in sources"] == [
        ["true \\ predicted", "no", "yes"],
        ["no", "1", "0"],
        ["yes", "1", "1"],
    ]
    assert ["yes", "1.000", "0.500", "0.667", "2"] in tables["mine, test: classes"]


def test_a_comparison_is_its_runs_and_the_backbone_alone(comparison, run, tmp_path):
    page = made(tmp_path, comparison)
    rows = page.tables["What was trained, and what it scores"][2:]
    assert [row[:4] for row in rows] == [
        ["backbone alone", "–", "0", "0.00%"],
        ["prefix-tuning", "flat, 4", "768", "1.00%"],
        ["full fine-tuning", "–", "9,999", "100.00%"],
    ]
    assert [row[7] for row in rows] == ["4.5000", "1.2500", "1.2500"]
    differing = page.tables["What differs between the runs"]
    assert differing[1:] == [["train.method", "prefix", "full"]]
    # The same sources side by side, though not written in the same order.
    assert len(page.all("article")) == 2
    assert "backbone alone b prefix-tuning x full fine-tuning x" in page.text

    several = find_runs([str(comparison), str(run)])
    assert [one.label for one in several][1:] == [
        "prefix-tuning",
        "full fine-tuning",
        "mine",
    ]
    (comparison / "comparison.json").unlink()  # interrupted
    again = find_runs([str(comparison)])
    assert [one.method for one in again] == ["none", "prefix", "full"]
    assert again[1].trained == 2 * 3 * 32 * 4


def test_runs_that_would_be_called_alike_are_told_apart(run, tmp_path):
    other = tmp_path / "others" / "mine"
    shutil.copytree(run, other)
    labels = [one.label for one in find_runs([str(run), str(other)])]
    assert labels == ["runs / mine", "others / mine"]
    labels = [one.label for one in find_runs([f"a={run}", f"b={other}"])]
    assert labels == ["a", "b"]


def test_what_is_missing_is_named_with_its_remedy(run, tmp_path):
    for path in [*run.glob("scores_*"), *run.glob("outputs_*")]:
        path.unlink()
    text = made(tmp_path, run).text
    assert f"prefix-jax evaluate --workdir {run}" in text
    assert "No run has written texts" in text and "not at its end" not in text

    log = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in log if json.loads(line)["step"] <= 4]
    (run / "metrics.jsonl").write_text("".join(kept))
    text = made(tmp_path, run).text
    assert "step 4 of 7 is the last logged" in text and "once more" in text

    (run / "metrics.jsonl").unlink()
    text = made(tmp_path, run).text
    assert "no metrics.jsonl" in text and "No run has logged a loss" in text

    write_evaluation(run, evaluation(), texts((SOURCES[0], "x")))
    (run / "config.json").unlink()
    page = made(tmp_path, run)
    assert "no config.json" in page.text
    assert "No run has recorded its settings" in page.text
    assert "12.35" in page.tables["What was trained, and what it scores"][2]


def test_a_run_out_of_patience_is_at_its_end(run, tmp_path):
    path = run / "config.json"
    log = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in log if json.loads(line)["step"] <= 3]
    worse = json.dumps({"step": 4, "split": "validation", "loss": 99.0}) + "\n"
    (run / "metrics.jsonl").write_text("".join([*kept, worse]))
    for patience, at_its_end in ((1, True), (2, False), (None, False)):
        record = json.loads(path.read_text())
        record["config"]["train"]["patience"] = patience
        path.write_text(json.dumps(record))
        text = made(tmp_path, run).text
        assert ("step 4 of 7 is the last logged" not in text) == at_its_end


def test_attention_is_the_backbones(run, backbone, tokenizer, config, tmp_path):
    page = made(tmp_path, run, attention=True, samples=1)
    [caption] = [name for name in page.tables if name.startswith("mine 1 sources")]
    shown = [row[1:] for row in page.tables[caption][2:]]
    prefix = load_prefix(run / "best", backbone)
    example = Example(SOURCES[0], "ref", ("ref",))
    [row] = encode_examples([example], tokenizer, config.data).rows
    mass = backbone.forward(
        jnp.asarray(row.tokens)[None], prefix=prefix, observe=True
    ).prefix_mass
    means = np.asarray(mass)[:, 0].mean(-1)
    expected = [[*layer, layer.mean()] for layer in means]
    assert np.abs(100 * np.array(expected) - np.array(shown, float)).max() < 0.51


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own["backbone"].update(name="/nowhere/model"),
        lambda own: own["backbone"].update(fingerprint="0123"),
    ],
    ids=["gone", "another"],
)
def test_without_the_backbone_the_rest_is_complete(run, tmp_path, change):
    whole = made(tmp_path, run)
    path = run / "best" / "prefix_jax.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    unseal(path.parent)
    page = made(tmp_path, run, attention=True)
    assert "mine not measured: the backbone" in page.text
    assert page.tables == whole.tables


def test_folders_without_a_run_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "empty", "empty holds no run: expected what `prefix-jax train`"),
        (tmp_path / "nowhere", "nowhere is no folder"),
        (run / "best", f"did you mean {run}?"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            report([str(given)], tmp_path / "x.html")
    with pytest.raises(InputError, match="needs the folder of a run"):
        report([], tmp_path / "x.html")
    with pytest.raises(InputError, match="given twice"):
        report([str(run), str(run)], tmp_path / "x.html")
    for name, text in (
        ("scores_test_best.json", "{}"),
        ("outputs_test_best.jsonl", '{"source": "x"}\n'),
        ("metrics.jsonl", "no\n"),
    ):
        kept = (run / name).read_text()
        (run / name).write_text(text)
        with pytest.raises(InputError, match=name):
            report([str(run)], tmp_path / "x.html", attention=False)
        (run / name).write_text(kept)
    assert not (tmp_path / "x.html").exists()


def test_only_our_pages_are_replaced(run, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    options = [str(run), "--out", str(out), "--no-attention"]
    assert run_cli("report", *options) == 0
    said = capsys.readouterr().out
    assert said == f"1 run in {out} ({out.stat().st_size:,} bytes)\n"
    assert GENERATOR in out.read_text()[:1000]
    assert run_cli("report", *options) == 0
    out.write_text("<html>mine</html>")
    assert run_cli("report", *options) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "<html>mine</html>"
    assert run_cli("report", *options, "--overwrite") == 0
    assert GENERATOR in out.read_text()
    for wrong in (run / "config.json", tmp_path):
        assert run_cli("report", str(run), "--out", str(wrong), "--overwrite") == 2
        assert "ends in .html" in capsys.readouterr().err
