"""Every kind of prefix: what it means, and that it trains like any other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from families import grouped_too
from kinds import AFTER, GATED, KINDS, LENGTH, SOURCE, TEXT, make, opened, read

from prefix_jax.config import MeshConfig, OptimConfig, TrainConfig
from prefix_jax.errors import InputError
from prefix_jax.learning.loss import loss_sums
from prefix_jax.learning.optim import make_optimizer
from prefix_jax.learning.split import merge, split
from prefix_jax.learning.step import init_train_state, make_eval_step, make_train_step
from prefix_jax.mesh import make_mesh
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_start import embedding_scale
from prefix_jax.prefix_config import PrefixConfig

KEY = jax.random.key(8)


def by_layer(kv):
    """The positions that a layer has, as the reference takes them."""
    keys, values = np.asarray(kv.keys[:, 0]), np.asarray(kv.values[:, 0])
    lengths = np.full(len(keys), kv.length)
    if kv.lengths is not None:
        lengths = np.asarray(kv.lengths[:, 0])
    return [(k[:n], v[:n]) for k, v, n in zip(keys, values, lengths, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_sees_what_it_should(backbone, kind):
    """Against a reference without masks: positions, layers, gates, what sees what."""
    prefix = opened(make(backbone, **KINDS[kind]))
    kv = prefix.fold(backbone)
    gates = np.ones(kv.keys.shape[:1] + kv.keys.shape[3:4]) if kv.own_softmax else None
    sees = np.arange(TEXT.shape[1]) >= (SOURCE if kv.placement == "infix" else 0)
    shift = LENGTH if kv.position_mode == "shifted" else 0
    positions = np.arange(TEXT.shape[1]) + shift * sees
    for row, ours in zip(np.asarray(TEXT), read(backbone, kv), strict=True):
        expected = reference.logits(backbone, row, positions, by_layer(kv), sees, gates)
        np.testing.assert_allclose(ours, expected, atol=3e-5)
    change = np.abs(read(backbone, kv) - read(backbone, None))
    assert change[:, SOURCE:].max() > 0.1


@grouped_too
@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_positions_that_are_not_there_have_no_parameters(backbone, kind):
    settings, config = KINDS[kind], backbone.config
    trainable, _ = split(
        {"backbone": backbone, "prefix": make(backbone, **settings)}, "prefix"
    )
    lengths = settings.get("lengths") or [
        LENGTH * (layer in settings.get("layers", range(3))) for layer in range(3)
    ]
    layers, d = np.count_nonzero(lengths), config.n_embd
    both = 2 * config.kv_heads * config.head_width
    expected = {
        "flat": sum(lengths) * both,
        "mlp": max(lengths) * d + (d + 1) * 16 + (16 + 1) * layers * both,
        "embedding": LENGTH * d,
    }[settings.get("kind", "flat")]
    expected += layers * config.kv_heads if settings.get("gate") else 0
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == expected


def batch(rows=8):
    random = np.random.default_rng(0)
    lengths = random.integers(6, 13, rows)
    mask = np.arange(12) < lengths[:, None]
    return {
        "tokens": random.integers(0, 300, (rows, 12)).astype(np.int32),
        "mask": mask,
        "loss_mask": mask & (np.arange(12) >= lengths[:, None] // 2),
    }


def trained(backbone, settings, steps, mesh=None):
    params = {"backbone": backbone, "prefix": make(backbone, **settings)}
    trainable, frozen = split(params, "prefix")
    optimizer = make_optimizer(OptimConfig(learning_rate=0.05), steps)
    state = init_train_state(trainable, optimizer, KEY)
    step = make_train_step(optimizer, TrainConfig(batch_size=8), mesh)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch())
        losses.append(float(metrics["loss"]))
    return state, frozen, losses


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_the_backbone_does_not(backbone, kind):
    """Law 6: the backbone's bytes stay; optimizer slots are the trainable leaves."""
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(backbone)]
    state, frozen, losses = trained(backbone, KINDS[kind], 20)
    assert losses[-1] < losses[0] - 0.1
    whole = merge(state.trainable, frozen)
    after = jax.tree.leaves(whole["backbone"])
    assert before == [np.asarray(leaf).tobytes() for leaf in after]
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state.trainable))
    slots = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(slots) == sorted(2 * shapes)
    # What is stored of it, whole and without dropout, has learned too.
    evaluate, start = make_eval_step(), make(backbone, **KINDS[kind])
    first, last = (
        float(evaluate(backbone, prefix.fold(backbone), batch())["nll"])
        for prefix in (start, whole["prefix"])
    )
    assert last < first


def test_eight_devices_equal_one(backbone):
    """Whose rows share one pass over the embeddings."""
    one, _, losses = trained(backbone, KINDS["embedding"], 3)
    mesh = make_mesh(MeshConfig(data=8))
    many, _, again = trained(backbone, KINDS["embedding"], 3, mesh)
    np.testing.assert_allclose(losses, again, rtol=1e-5)
    chex.assert_trees_all_close(one.trainable, many.trainable, rtol=1e-6, atol=2e-4)


def test_embeddings_are_words_before_the_text(backbone):
    prefix = make(backbone, kind="embedding")
    vectors = jnp.broadcast_to(prefix.embeddings(), (2, LENGTH, 32))
    words = backbone.token_embedding[...][TEXT]
    whole = backbone.forward(jnp.concatenate([vectors, words], 1)).hidden
    expected = backbone.logits(whole)[:, LENGTH:]
    ours = read(backbone, prefix.fold(backbone))
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_embeddings_learn_as_in_peft(backbone, model_folder):
    """The same vectors give the logits and the gradient of PEFT's prompt tuning."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    prefix = make(backbone, kind="embedding")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    model = transformers.GPT2LMHeadModel.from_pretrained(model_folder)
    model = peft.get_peft_model(model, config).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data = torch.tensor(np.asarray(prefix.embeddings()))
    text = torch.tensor(np.asarray(TEXT)).long()
    theirs = model(input_ids=text).logits[:, LENGTH:]
    lost = torch.nn.functional.cross_entropy(
        theirs[:, :-1].flatten(0, 1), text[:, 1:].flatten(), reduction="sum"
    )
    [expected] = torch.autograd.grad(lost, weight)

    def loss(prefix):
        data = {"tokens": TEXT, "mask": TEXT >= 0, "loss_mask": TEXT >= 0}
        return loss_sums(backbone, prefix.fold(backbone), data).nll

    gradient = jax.jit(jax.grad(loss))(prefix).vectors[...]
    gradient /= embedding_scale(backbone)
    largest = float(expected.abs().max())
    np.testing.assert_allclose(
        read(backbone, prefix.fold(backbone)), theirs.detach().numpy(), atol=5e-5
    )
    np.testing.assert_allclose(gradient, expected.numpy(), atol=1e-4 * largest)


def test_an_infix_is_not_seen_by_the_source(backbone):
    kv = make(backbone, placement="infix")()
    seen, without = read(backbone, kv), read(backbone, None)
    np.testing.assert_allclose(seen[:, :SOURCE], without[:, :SOURCE], atol=1e-5)


def test_an_infix_needs_to_know_where_it_stands(backbone):
    infix, prefix = make(backbone, placement="infix")(), make(backbone)()
    with pytest.raises(InputError, match="mark with `after`"):
        backbone(TEXT, infix)
    with pytest.raises(InputError, match="for an infix"):
        backbone(TEXT, prefix, after=AFTER)


def test_the_loss_puts_an_infix_before_the_separator(backbone):
    """Row: 3 tokens of source, separator, target: the separator sees it."""
    kv = make(backbone, placement="infix")()
    loss_mask = jnp.broadcast_to(jnp.arange(TEXT.shape[1]) > SOURCE, TEXT.shape)
    data = {"tokens": TEXT, "mask": TEXT >= 0, "loss_mask": loss_mask}
    log_probs = jax.nn.log_softmax(read(backbone, kv))
    expected = sum(
        -log_probs[row, t - 1, TEXT[row, t]]
        for row in range(2)
        for t in range(SOURCE + 1, TEXT.shape[1])
    )
    np.testing.assert_allclose(loss_sums(backbone, kv, data).nll, expected, rtol=1e-5)


def test_a_gate_of_zero_is_no_prefix(backbone):
    """Bit for bit; and it has a gradient, so that it can open."""
    prefix = make(backbone, **GATED)
    np.testing.assert_array_equal(read(backbone, prefix()), read(backbone, None))

    def total(prefix):
        return jnp.square(read(backbone, prefix())).sum()

    gradient = jax.jit(jax.grad(total))(prefix)
    assert np.all(gradient.gate[...] != 0)


def test_a_layer_without_positions_is_not_a_layer_of_zeros(backbone):
    """Zeros would still draw attention away from the text."""
    kv = make(backbone, layers=(1,))()
    zeros = KV(kv.keys, kv.values)
    assert not np.any(kv.keys[0]) and not np.any(kv.values[2])
    assert np.abs(read(backbone, kv) - read(backbone, zeros)).max() > 0.01


@pytest.mark.parametrize("kind", ["flat", "embedding", "infix", "mlp lengths", "all"])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_shorter_equals_what_training_saw(backbone, kind, length):
    """Cut to k positions, or k positions visible: also what k draws in a step."""
    kv = opened(make(backbone, **KINDS[kind])).fold(backbone)
    cut = kv.shorten(length)
    assert cut.length == length
    view = jax.jit(kv.limit)(length)
    np.testing.assert_allclose(read(backbone, cut), read(backbone, view), atol=1e-5)


def test_steps_draw_every_nested_length(backbone):
    prefix = make(backbone, nested=(1, 2))
    drawn = {int(prefix(key=jax.random.key(seed)).lengths.max()) for seed in range(30)}
    assert drawn == {1, 2, LENGTH}
    assert prefix().lengths is None  # what is stored and validated is the whole


def test_dropout_of_embeddings_drops_before_the_backbone_reads(backbone):
    prefix = make(backbone, kind="embedding", dropout=0.5)
    whole, dropped = prefix.fold(backbone), prefix.fold(backbone, key=KEY)
    assert np.all(np.asarray(dropped.keys) != 0)
    assert np.any(np.asarray(dropped.keys) != np.asarray(whole.keys))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "embedding", "layers": (0,)}, "out of the same vectors"),
        ({"kind": "embedding", "lengths": (1, 2)}, "gives a position in every layer"),
        ({"kind": "embedding", "placement": "infix"}, "could not be folded"),
        ({"kind": "embedding", **GATED}, "no prompt that the backbone could read"),
        ({"gate": True}, "a gate of 0 must be no prefix at all"),
        ({**GATED, "init": "zeros"}, "keep each other's gradient at 0"),
        ({"layers": (0,), "lengths": (1,)}, "are both given"),
        ({"layers": ()}, "at least one layer"),
        ({"layers": (1, 1)}, "each of them once"),
        ({"lengths": (0, 0)}, "not all of them 0"),
        ({"lengths": (1, 2), "length": 3}, "give --prefix.length 2 too, or leave"),
        ({"nested": (4, 2)}, "growing lengths"),
        ({"nested": (2, 20)}, "nested has 20 positions but the prefix has 10"),
        ({"init": "labels"}, "prefix.labels is empty"),
        ({"init": "labels", "labels": ("a", " ")}, "has an empty name"),
        ({"init": "prefix"}, "prefix.start is empty"),
        ({"start": "DIR"}, 'it is for "prefix" only'),
        ({"labels": ("a",)}, 'it is for "labels" only'),
        ({"kind": "embedding", "hidden": 64}, 'it is for "mlp" only'),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        PrefixConfig(**settings)
