"""What is scored and kept of a run, and several methods side by side."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

import prefix_jax.runs.prepare as prepare_module
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.weights import fingerprint
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.compare import compare
from prefix_jax.runs.evaluate import evaluate
from prefix_jax.runs.prepare import prepare
from prefix_jax.runs.result import save_result
from prefix_jax.storage import artifact
from prefix_jax.storage.log import read_metrics
from runs.support import Crash, quiet


def test_evaluate_scores_the_best_prefix(config, finished, model_folder):
    result = evaluate(config, finished, split="validation", console=quiet())
    best = min(
        line["loss"] for line in read_metrics(finished) if line["split"] == "validation"
    )
    assert result.loss == best
    assert result.sources == 5
    assert list(result.scores) == ["bleu", "nist", "chrf", "rougeL"]
    written = (finished / "outputs_validation_best.jsonl").read_text().splitlines()
    assert len(written) == 5 and json.loads(written[0])["references"]
    alone = evaluate(config, finished, which="none", console=quiet())
    assert alone.loss != result.loss


def test_limit_scores_the_first_sources_whole(config, finished, tmp_path, data_folder):
    """Loss and texts of them, with all of their references, as if they were all."""
    lines = (data_folder / "validation.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "validation.jsonl").write_text("".join(lines[:2]))
    fewer = dataclasses.replace(config.data, path=str(tmp_path))
    expected = evaluate(
        dataclasses.replace(config, data=fewer),
        finished,
        split="validation",
        console=quiet(),
    )
    found = evaluate(config, finished, split="validation", limit=2, console=quiet())
    assert found.settings == {**expected.settings, "limit": 2}
    assert dataclasses.replace(found, settings=expected.settings) == expected
    assert found.sources == 2
    references = (finished / "references_validation_best.txt").read_text()
    assert len(references.split("\n\n")[1].splitlines()) == 2


@pytest.mark.parametrize("method", ["prefix", "full"])
def test_a_result_is_replaced_whole(config, tmp_path, monkeypatch, method):
    setup = prepare(config)
    params = {"backbone": setup.backbone}
    if method == "prefix":
        params["prefix"] = init_prefix(
            setup.backbone, PrefixConfig(init="random"), key=jax.random.key(0)
        )
    folder = tmp_path / "best"
    save_result(folder, setup, params, {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def crash(path, *_):
        raise Crash

    # The last thing that is written of each.
    monkeypatch.setattr(type(setup.tokenizer), "save_pretrained", crash)
    monkeypatch.setattr(artifact, "write_json", crash)
    zeros = jax.tree.map(jnp.zeros_like, params)
    with pytest.raises(Crash):
        save_result(folder, setup, zeros, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def counted(monkeypatch, module, name):
    """A list that grows with each call of a module's function."""
    function, calls = getattr(module, name), []

    def count(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, count)
    return calls


@pytest.mark.slow
def test_compare_trains_each_method_and_tabulates(config, tmp_path, monkeypatch):
    short = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=2, eval_every=2)
    )
    console = quiet()
    backbones = counted(monkeypatch, prepare_module, "load_backbone")
    splits = counted(monkeypatch, prepare_module, "load_examples")
    rows = compare(
        short,
        tmp_path,
        methods=("none", "prefix", "embedding", "top2", "full"),
        learning_rates={"full": 1e-3, "top2": 1e-3},
        console=console,
    )
    assert rows is not None
    assert len(backbones) == 1
    assert [split for _, split, _ in splits] == ["test", "train", "validation"]
    by_method = {row.method: row for row in rows}
    assert by_method["none"].trained == by_method["none"].stored_bytes == 0
    assert by_method["full"].share == 1.0
    assert 0 < by_method["embedding"].trained < by_method["prefix"].trained
    assert by_method["prefix"].share < by_method["top2"].share < 1.0
    assert by_method["prefix"].stored_bytes < by_method["full"].stored_bytes / 10
    assert by_method["full"].learning_rate == 1e-3
    shown = console.file.getvalue()
    assert "full fine-tuning" in shown and "reference" in shown
    assert (tmp_path / "comparison.json").exists()
    assert (tmp_path / "curves.png").exists()
    tuned = load_backbone(str(tmp_path / "full" / "best"))
    assert fingerprint(tuned) != fingerprint(load_backbone(config.backbone.name))

    # Once more: nothing is trained, and what training took is not forgotten.
    [again] = compare(short, tmp_path, methods=("prefix",), console=quiet())
    assert again == by_method["prefix"] and again.seconds > 0
