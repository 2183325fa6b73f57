"""The scripts in benchmarks/ measure what they say."""

import json
import math
import runpy
import sys

import jax
import pytest
from conftest import REPOSITORY
from rounding import SUM

from prefix_jax.model.loading import END


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
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(
        str(REPOSITORY / "benchmarks" / "perplexity.py"), run_name="__main__"
    )
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
    assert scores["perplexity_per_byte"] == pytest.approx(
        math.exp(nll / size), rel=SUM["rtol"]
    )
