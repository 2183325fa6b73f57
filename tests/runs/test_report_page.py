"""The page of `report`: whole, harmless, and true to the files that it is made of."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefix_jax.runs.report
from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import encode_examples
from prefix_jax.errors import InputError
from prefix_jax.runs.evaluation import Evaluation, write_evaluation
from prefix_jax.runs.folders import find_runs
from prefix_jax.runs.report import GENERATOR, MUCH, report
from prefix_jax.runs.validate import Written
from prefix_jax.scoring.classes import ClassReport
from prefix_jax.storage.artifact import load_prefix
from prefix_jax.storage.log import read_metrics
from runs.support import run_cli

HOSTILE = "</p></style><script>alert('1')</script><img \"onerror='x'>&lt;"
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that elements are closed in order; keeps elements, tables and text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.tables, self.words = [], [], {}, []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.caption, self.rows = "", []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.caption.strip()] = [
                [" ".join(cell.split()) for cell in row] for row in self.rows
            ]

    def handle_data(self, data):
        self.words.append(data)
        if "caption" in self.open:
            self.caption += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            own
            for name, own in self.elements
            if name == tag and wanted.items() <= own.items()
        ]


def evaluation(**changes):
    values = {
        "split": "test",
        "which": "best",
        "loss": 1.25,
        "perplexity": 3.49,
        "tokens": 50,
        "sources": 2,
        "cut_sources": 0,
        "scores": {"bleu": 12.345, "ter": 67.891},
        "subsets": {},
        "classes": None,
    }
    return Evaluation(**values | changes)


def texts(*pairs):
    examples = [Example(source, "ref", ("ref", "other")) for source, _ in pairs]
    return Written(examples, [text for _, text in pairs], 0)


SOURCES = ("name : Mill 1 | area : hill", "name : Mill 2 | area : harbour")


@pytest.fixture
def run(finished, tmp_path):
    """A finished run that is evaluated."""
    folder = tmp_path / "runs" / "mine"
    # Other tests evaluate it where it is.
    others = shutil.ignore_patterns("scores_*", "outputs_*", "references_*")
    shutil.copytree(finished, folder, ignore=others)
    write_evaluation(folder, evaluation(), texts(*zip(SOURCES, "xy", strict=True)))
    return folder


def made(tmp_path, *given, **options):
    out = tmp_path / "page.html"
    report([str(one) for one in given], out, **{"attention": False} | options)
    return Page(out)


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


@pytest.fixture
def comparison(run, tmp_path):
    """What `compare` leaves: two runs and the backbone alone."""
    folder = tmp_path / "both"
    shutil.copytree(run, folder / "prefix")
    shutil.copytree(run, folder / "full")
    path = folder / "full" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["train"]["method"] = "full"
    path.write_text(json.dumps(record))
    alone = evaluation(which="none", loss=4.5)
    pairs = zip(reversed(SOURCES), "ab", strict=True)
    write_evaluation(folder / "none", alone, texts(*pairs))
    numbers = {"none": (0, 0.0), "prefix": (768, 0.01), "full": (9999, 1.0)}
    rows = [
        {"method": name, "trained": trained, "share": share, "scores": alone.to_dict()}
        for name, (trained, share) in numbers.items()
    ]
    (folder / "comparison.json").write_text(json.dumps(rows))
    return folder


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


def colours(scheme):
    """The colours of the style sheet, red, green and blue from 0 to 1."""
    css = Path(prefix_jax.runs.report.__file__).with_name("report.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): ([^;]+);", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): ([^;]+);", dark))
    return {
        name: np.array(
            [int(value[i : i + 2], 16) for i in (1, 3, 5)]
            if value.startswith("#")
            else value.split(),
            float,
        )
        / 255
        for name, value in found.items()
        if re.match(r"#|\d+ \d+ \d+$", value)
    }


def contrast(one, other):
    """WCAG 2's ratio."""

    def luminance(colour):
        linear = np.where(
            colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    found = colours(scheme)
    for name in ("ink", "soft", "accent"):
        for ground in ("paper", "raised", "warn"):
            assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
    for number in range(6):  # the labels of the curves are text
        assert contrast(found[f"c{number}"], found["paper"]) >= 4.5
    for share in np.linspace(0, 1, 201):
        cell = share * found["heat"] + (1 - share) * found["paper"]
        ink = found["heat-high" if share > MUCH else "heat-low"]
        assert contrast(cell, ink) >= 4.5, share


MEASURE = """<!DOCTYPE html><iframe id="f" src="page.html" width="{width}" height="900"
style="border: 0"></iframe><pre id="out"></pre><script>
document.getElementById("f").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const seen = name => page.defaultView.getComputedStyle(
      page.querySelector(name)).display !== "none";
  document.getElementById("out").textContent = JSON.stringify({{
    inner: page.defaultView.innerWidth, scroll: root.scrollWidth,
    wide: seen("svg.wide"), narrow: seen("svg.narrow"),
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor}});
}};</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(comparison, tmp_path, scheme, width):
    """The page never scrolls sideways, and keeps to the reader's colour scheme."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    changed = dataclasses.replace(
        evaluation(), scores={"bleu": 1.0, "nist": 2.0, "chrf": 3.0, "rougeL": 4.0}
    )
    long = "aVeryLongWordWithoutEnd" * 20
    write_evaluation(comparison / "full", changed, texts((long, long)))
    made(tmp_path, comparison, attention=True)
    (tmp_path / "measure.html").write_text(MEASURE.format(width=width))
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--allow-file-access-from-files",  # the frame is another file
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}",
        "--window-size=1400,1000",
        "--virtual-time-budget=5000",
        "--dump-dom",
        (tmp_path / "measure.html").as_uri(),
    ]
    dom = subprocess.run(
        [chromium, *arguments], capture_output=True, text=True, timeout=120
    ).stdout
    measured = re.search(r"<pre id=\"out\">({.*?})</pre>", dom)
    assert measured, dom[-500:]
    found = json.loads(measured[1])
    assert found["scroll"] <= found["inner"] == width
    assert found["wide"] == (width > 640) and found["narrow"] == (width <= 640)
    ground = [int(number) for number in re.findall(r"\d+", found["ground"])]
    np.testing.assert_allclose(np.array(ground) / 255, colours(scheme)["paper"])
