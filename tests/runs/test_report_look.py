"""How the page of `report` looks: contrast, and a real browser."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import prefix_jax.runs.report
from prefix_jax.runs.evaluation import write_evaluation
from prefix_jax.runs.report import MUCH
from runs.pages import evaluation, made, texts


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
