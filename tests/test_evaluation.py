"""What `evaluate` leaves: scores of subsets, and the files that scripts read."""

import dataclasses
import io
import json
import math

import official_files
import pytest
from rich.console import Console

from prefix_jax.config import BackboneConfig, Config, DecodeConfig, MeshConfig
from prefix_jax.data.tasks import Example
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError
from prefix_jax.runs.evaluate import evaluate
from prefix_jax.runs.evaluation import Evaluation, print_evaluation, write_evaluation
from prefix_jax.runs.validate import Written
from prefix_jax.score_config import ScoreConfig
from prefix_jax.scoring.classes import ClassReport
from prefix_jax.scoring.text import bleu, ter


def evaluation(**changes):
    values = {
        "split": "test",
        "which": "best",
        "loss": 1.0,
        "perplexity": 2.718,
        "tokens": 5,
        "sources": 2,
        "cut_sources": 0,
        "scores": {"bleu": 12.345},
        "subsets": {},
        "classes": None,
    }
    return Evaluation(**values | changes)


def printed(result):
    console = Console(file=io.StringIO(), width=100)
    print_evaluation(result, console)
    return console.file.getvalue()


def test_files_are_as_the_e2e_scripts_read_them(tmp_path):
    examples = [Example("a", "x", ("x", "y\nz")), Example("b", "w", ("w",))]
    write_evaluation(tmp_path, evaluation(), Written(examples, ["one\ntwo", ""], 0))
    outputs = (tmp_path / "outputs_test_best.txt").read_text().splitlines()
    assert outputs == ["one two", ""]
    references = (tmp_path / "references_test_best.txt").read_text()
    groups = [group.splitlines() for group in references.strip().split("\n\n")]
    assert groups == [["x", "y z"], ["w"]]
    rows = (tmp_path / "outputs_test_best.jsonl").read_text().splitlines()
    assert json.loads(rows[0]) == {
        "source": "a",
        "text": "one\ntwo",
        "references": ["x", "y\nz"],
    }
    scores = json.loads((tmp_path / "scores_test_best.json").read_text())
    assert scores["scores"] == {"bleu": 12.345} and scores["classes"] is None


def test_what_shaped_a_result_is_kept_and_shown():
    settings = {"limit": 2, "decode.method": "beam", "score.content_free": ("N/A", "")}
    result = evaluation(settings=settings)
    assert "5 target tokens; limit 2, decode.method beam, score.con" in printed(result)
    read = json.loads(json.dumps(result.to_dict()))
    assert Evaluation.from_dict(read) == result
    del read["settings"]  # an earlier version's
    assert Evaluation.from_dict(read) == evaluation()
    for wrong in ({"limit": -1}, {"decode.method": "x"}, {"decode.width": 1}, [1]):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Evaluation.from_dict({**read, "settings": wrong})


def test_scores_without_the_loss(config, tmp_path):
    with_loss = evaluate(config, tmp_path / "with", which="none")
    quick = dataclasses.replace(config, score=ScoreConfig(("bleu", "ter"), loss=False))
    result = evaluate(quick, tmp_path / "without", which="none")
    assert result.scores == with_loss.scores and with_loss.tokens > 0
    assert math.isnan(result.loss) and result.tokens == 0
    assert result.settings == {"score.loss": False, "decode.max_new_tokens": 4}
    assert "loss" not in printed(result).partition(";")[0]
    path = tmp_path / "without" / "scores_test_none.json"
    read = Evaluation.from_dict(json.loads(path.read_text()))
    assert printed(read) == printed(result)
    with pytest.raises(InputError, match=r"score\.loss is False .* no other score"):
        quick.replaced({"data.task": "language_modelling"})


def test_tables_are_there_where_there_is_something_to_tell():
    assert printed(evaluation()).splitlines() == [
        "test, best: loss 1.0000 nats per target token, perplexity 2.718, BLEU 12.35 "
        "(2 sources, 5 target tokens)"
    ]
    one = {"sources": 2, "bleu": 3.0}
    assert "subset" not in printed(evaluation(subsets={"seen": one}))
    text = printed(evaluation(subsets={"seen": one, "unseen": one | {"bleu": 4.0}}))
    assert all(word in text for word in ("unseen", "4.00", "all", "12.35"))
    report = ClassReport.of(["no", "no"], ["no", "yes"], ["no", "yes"])
    text = printed(evaluation(scores={"accuracy": 0.5}, classes=report))
    assert "accuracy 0.500" in text and "true \\ predicted" in text
    many = [str(number) for number in range(20)]
    report = ClassReport.of(many, many, many)
    assert "true" not in printed(evaluation(scores={}, classes=report))


@pytest.fixture
def config(model_folder, tmp_path):
    official_files.webnlg(tmp_path)
    return Config(
        backbone=BackboneConfig(name=str(model_folder)),
        data=DataConfig(source="webnlg", path=str(tmp_path), max_length=64),
        decode=DecodeConfig(max_new_tokens=4),
        score=ScoreConfig(metrics=("bleu", "ter")),
        mesh=MeshConfig(data=1),
    )


def test_webnlg_is_scored_by_seen_and_unseen_categories(config, tmp_path):
    out = tmp_path / "out"
    result = evaluate(config, out, which="none")
    rows = (out / "outputs_test_none.jsonl").read_text().splitlines()
    seen, unseen = map(json.loads, rows)
    assert list(result.subsets) == ["seen", "unseen"]
    assert result.settings == {"decode.max_new_tokens": 4}
    for name, row in (("seen", seen), ("unseen", unseen)):
        text, references = [row["text"]], [row["references"]]
        assert result.subsets[name] == {
            "sources": 1,
            "bleu": bleu(text, references),
            "ter": ter(text, references),
        }
    both = [one["text"] for one in (seen, unseen)]
    expected = ter(both, [one["references"] for one in (seen, unseen)])
    assert result.scores["ter"] == expected and result.sources == 2


def test_scores_that_the_task_has_not_are_refused_before_any_work(config):
    data = DataConfig(source="webnlg", path="nowhere")
    config = Config(data=data, score=ScoreConfig(metrics=("accuracy",)))
    with pytest.raises(InputError, match=r'has "accuracy", which data\.task'):
        evaluate(config, None, which="none")
