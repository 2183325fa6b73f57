"""Classification: the likelihood of each label's words, and what is made of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefix_jax.cli import main
from prefix_jax.data.tasks import Example
from prefix_jax.data.tokens import encode_examples, encode_labels, encode_prompts
from prefix_jax.data_config import DataConfig
from prefix_jax.errors import InputError
from prefix_jax.mesh import make_mesh
from prefix_jax.model.compose import bank
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.runs.generate import Line, open_writer
from prefix_jax.score_config import ScoreConfig
from prefix_jax.scoring.labels import (
    calibrated,
    label_probabilities,
    log_likelihoods,
    normalised,
)
from prefix_jax.storage.artifact import save_prefix

WORDS = ["very old", "by the river", "no"]
LABELS = ("0=very old", "1=by the river", "2=no")
SOURCES = ["The mill", "name : Blue Spice", "The mill by the river is old.", "x"]


@pytest.fixture(scope="module")
def prefixes(backbone):
    return [
        init_prefix(
            backbone,
            PrefixConfig(init="random", length=2 + number),
            key=jax.random.key(number),
        )()
        for number in range(3)
    ]


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return encode_prompts(SOURCES, tokenizer)


@pytest.fixture(scope="module")
def labels(tokenizer):
    found = encode_labels(WORDS, tokenizer)
    assert len({len(label) for label in found}) > 1
    return found


@pytest.mark.slow
def test_likelihoods_are_those_of_the_full_forward_pass(
    backbone, prefixes, prompts, labels
):
    found = log_likelihoods(backbone, prompts, labels, prefix=prefixes[0], batch_size=5)
    for i, prompt in enumerate(prompts):
        for j, label in enumerate(labels):
            tokens = jnp.asarray(np.concatenate([prompt, label]))[None]
            chances = jax.nn.log_softmax(backbone(tokens, prefixes[0])[0])
            at = np.arange(len(prompt) - 1, len(prompt) + len(label) - 1)
            expected = float(chances[at, label].sum())
            assert found[i, j] == pytest.approx(expected, rel=1e-5)


def test_a_row_of_training_has_the_same_loss(backbone, tokenizer, prompts, labels):
    """Loss is on the label's words alone: no end token."""
    config = DataConfig(task="classification", labels=LABELS, max_length=48)
    examples = [Example(SOURCES[0], words, (words,)) for words in WORDS]
    rows = encode_examples(examples, tokenizer, config).rows
    for row, label in zip(rows, labels, strict=True):
        assert row.tokens.tolist() == [*prompts[0], *label]
        assert row.tokens[row.loss_mask].tolist() == label.tolist()


def test_rows_of_a_bank_are_those_of_single_prefixes(
    backbone, tokenizer, prefixes, prompts
):
    ids = [2, 0, 1, 2]
    score = ScoreConfig(content_free=("N/A", ""), label_likelihood="token")
    together = label_probabilities(
        backbone,
        tokenizer,
        prompts,
        WORDS,
        prefix=bank(prefixes),
        prefix_ids=ids,
        score=score,
        batch_size=4,
    )
    for number, one in enumerate(ids):
        alone = label_probabilities(
            backbone,
            tokenizer,
            prompts[number : number + 1],
            WORDS,
            prefix=prefixes[one],
            score=score,
        )
        np.testing.assert_allclose(together[number], alone[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (None, "there are 3 prefixes: say with prefix_ids"),
        ([0, 1, 3, 2], "row 2 asks for prefix 3; there are 3"),
        ([0, 1], "must be 4 integers"),
    ],
)
def test_a_bank_needs_a_known_prefix_for_each_prompt(
    backbone, tokenizer, prefixes, prompts, ids, said
):
    with pytest.raises(InputError, match=said):
        label_probabilities(
            backbone, tokenizer, prompts, WORDS, prefix=bank(prefixes), prefix_ids=ids
        )


def test_devices_share_the_rows(backbone, tokenizer, prompts):
    one = label_probabilities(backbone, tokenizer, prompts, WORDS)
    mesh = make_mesh(batch_size=8)
    assert mesh.size == 8
    shared = label_probabilities(
        backbone, tokenizer, prompts, WORDS, batch_size=8, mesh=mesh
    )
    np.testing.assert_allclose(shared, one, rtol=1e-4)
    np.testing.assert_allclose(one.sum(-1), 1)


def test_likelihood_per_token_is_the_geometric_mean(
    backbone, tokenizer, prompts, labels
):
    lengths = [len(label) for label in labels]
    summed = log_likelihoods(backbone, prompts, labels)
    for kind, expected in (("sum", summed), ("token", summed / lengths)):
        found = label_probabilities(
            backbone,
            tokenizer,
            prompts,
            WORDS,
            score=ScoreConfig(label_likelihood=kind),
        )
        np.testing.assert_allclose(found, normalised(expected), rtol=1e-4)


def test_calibration_makes_what_says_nothing_uniform(backbone, tokenizer, prefixes):
    score = ScoreConfig(content_free=("N/A",))
    found = label_probabilities(
        backbone,
        tokenizer,
        encode_prompts(["N/A", *SOURCES], tokenizer),
        WORDS,
        prefix=prefixes[1],
        score=score,
    )
    np.testing.assert_allclose(found[0], 1 / 3, rtol=1e-5)
    assert np.abs(found[1:] - 1 / 3).max() > 0.01


def test_calibration_divides_by_the_mean_probability():
    """Zhao et al. 2021: p / p_content_free, normalised."""
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    free = np.array([[0.9, 0.1], [0.5, 0.5]])
    expected = p / [0.7, 0.3]
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(calibrated(np.log(p), np.log(free)), expected)


def test_labels_that_cannot_be_told_apart(backbone, tokenizer, prompts):
    with pytest.raises(InputError, match='tokens of "no no" begin with all of "no"'):
        encode_labels(["no", "no no"], tokenizer)
    long = encode_prompts(["Mill " * 60], tokenizer)
    with pytest.raises(InputError, match="64 positions leave 64: shorten the text"):
        label_probabilities(backbone, tokenizer, long, WORDS)


# --- the commands -----------------------------------------------------------


@pytest.fixture(scope="module")
def stored(backbone, model_folder, prefixes, tmp_path_factory):
    """Two classifiers, a writer and a prefix that does not say."""
    folder = tmp_path_factory.mktemp("prefixes")
    kinds = {"a": "classification", "b": "classification", "w": "table_to_text"}
    for (name, task), prefix in zip(kinds.items(), prefixes, strict=True):
        save_prefix(
            folder / name,
            prefix,
            backbone=backbone,
            base_model_name=str(model_folder),
            task=task,
            recipe={"data": {"labels": list(LABELS), "later": 1}, "score": {}},
        )
    return folder


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    printed = capsys.readouterr()
    return exit.value.code, printed.out, printed.err


def test_generate_prints_label_and_probabilities(
    stored, backbone, tokenizer, prefixes, prompts, tmp_path, capsys
):
    both = ["--prefix", f"a={stored / 'a'}", "--prefix", f"b={stored / 'b'}"]
    rows = [{"prompt": s, "prefix": p} for s, p in zip(SOURCES, "abba", strict=True)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = run(capsys, "generate", *both, "--file", str(file), "--json")
    assert code == 0
    for number, line in enumerate(map(json.loads, out.splitlines())):
        [expected] = label_probabilities(
            backbone,
            tokenizer,
            prompts[number : number + 1],
            WORDS,
            prefix=prefixes["ab".index(rows[number]["prefix"])],
        )
        assert list(line["probabilities"]) == WORDS
        np.testing.assert_allclose(
            list(line["probabilities"].values()), expected, rtol=1e-4
        )
        assert line["label"] == WORDS[expected.argmax()]
    # Calibrated by the text itself, no label is likelier than another.
    one = ["generate", "--prefix", str(stored / "a"), SOURCES[0]]
    code, out, _ = run(capsys, *one, "--content-free", SOURCES[0], "--json")
    found = list(json.loads(out)["probabilities"].values())
    np.testing.assert_allclose(found, [1 / 3] * 3, rtol=1e-4)
    code, out, _ = run(capsys, *one)
    assert code == 0 and out.count("0.") == 3 and out.split("  (")[0] in WORDS


def test_a_bare_backbone_classifies_with_labels(model_folder, backbone, tokenizer):
    writer = open_writer([], str(model_folder), "classification", LABELS)
    [found] = writer.classify([Line(SOURCES[0])])
    prompts = encode_prompts(SOURCES[:1], tokenizer)
    [expected] = label_probabilities(backbone, tokenizer, prompts, WORDS)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5)


def test_what_does_not_go_together_is_said(stored, model_folder, tmp_path, capsys):
    a, w = str(stored / "a"), str(stored / "w")
    row = tmp_path / "row.jsonl"
    row.write_text('{"prompt": "x", "prefix": "a"}')
    for arguments, message in (
        (
            ["--prefix", a, "--prefix", w, "--file", str(row)],
            '"a" finds labels and "w" writes',
        ),
        (["--prefix", a, "x", "--stream", "True"], "a label is none"),
        (["--prefix", w, "x", "--labels", "0=a", "1=b"], "and it alone"),
        (["--prefix", w, "x", "--content-free", "N/A"], "no classes for --content-f"),
        (["--backbone", str(model_folder), "--task", "classification", "x"], "alone"),
        (["--prefix", a, "x", "--labels", "0=a", "1"], "expected RAW=WORDS"),
    ):
        code, _, err = run(capsys, "generate", *arguments)
        assert code == 2 and message in err, err


@pytest.fixture
def recipe(model_folder, tmp_path):
    rows = [("The mill", 0), ("The river", 1), ("Blue Spice", 2), ("The mill", 1)]
    lines = [json.dumps({"source": s, "target": t}) for s, t in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    path = tmp_path / "recipe.py"
    path.write_text(
        "from prefix_jax.config import *\n"
        f"config = Config(backbone=BackboneConfig({str(model_folder)!r}), "
        f"data=DataConfig(task='classification', path={str(tmp_path)!r}, "
        f"max_length=48, labels={LABELS!r}), mesh=MeshConfig(data=1))\n"
    )
    return path


def test_evaluate_scores_a_bank_of_classifiers(stored, recipe, tmp_path, capsys):
    sklearn = pytest.importorskip("sklearn.metrics")
    out = tmp_path / "out"
    both = ["--prefix", f"a={stored / 'a'}", "--prefix", f"b={stored / 'b'}"]
    common = ["evaluate", str(recipe), "--workdir", str(out)]
    code, printed, _ = run(capsys, *common, *both)
    assert code == 0
    assert "accuracy" in printed and "true \\ predicted" in printed
    for name in "ab":
        scores = json.loads((out / f"scores_test_{name}.json").read_text())
        lines = (out / f"outputs_test_{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        true = [row["references"][0] for row in rows]
        predicted = [row["text"] for row in rows]
        assert true == ["very old", "by the river", "no", "by the river"]
        found = scores["scores"]
        assert found["accuracy"] == sklearn.accuracy_score(true, predicted)
        matrix = sklearn.confusion_matrix(true, predicted, labels=WORDS)
        assert scores["classes"]["confusion"] == matrix.tolist()
        run(capsys, *common, "--prefix", f"alone={stored / name}")
        alone = json.loads((out / "scores_test_alone.json").read_text())
        assert alone["classes"] == scores["classes"]
        assert alone["loss"] == pytest.approx(scores["loss"], rel=1e-5)
    code, printed, err = run(capsys, *common, *both, "--score.content-free", "N/A")
    assert code == 0 and "score.content_free N/A)" in printed
    scores = json.loads((out / "scores_test_a.json").read_text())
    assert scores["settings"] == {"score.content_free": ["N/A"]}
    code, printed, err = run(capsys, *common, "--score.metrics", "bleu")
    assert code == 2 and 'has "bleu", which data.task "classification"' in err
