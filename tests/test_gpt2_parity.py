"""Law 1: logits equal those of transformers' PyTorch GPT-2.

The bound. Both programs evaluate one function in f32 and neither is exact, so the
reference is the same PyTorch model run in f64, and PyTorch's own f32 error against it
is the measure of what f32 rounding does to this model on this input. Ours may be at
most four times that (maxima of a few thousand rounding errors, from sums taken in
another order, differ by less) plus a floor of four units in the last place of the
largest logit. bf16 is held to the same rule. It follows that ours and PyTorch's f32
logits differ by at most five times its own error plus the floor: about 1e-5 here.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import ROWS, TOKENS, VOCABULARY, on_one_thread, padded_batch

from prefix_jax.model.activations import ACTIVATIONS, PARAMETERS, activation
from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": VOCABULARY,
    "n_positions": 24,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VARIANTS = {
    "default": {},
    "n_inner": {"n_inner": 40},
    "unscaled attention": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "by layer alone": {
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "upcast": {"reorder_and_upcast_attn": True},
    "upcast, by layer": {
        "reorder_and_upcast_attn": True,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "epsilon": {"layer_norm_epsilon": 0.1},
    "untied": {"tie_word_embeddings": False},
    "exact positions": {"n_positions": 15},
    "one head": {"n_head": 1},
    "one layer": {"n_layer": 1},
}
PREFIX = 4

one_thread = pytest.fixture(scope="module", autouse=True)(on_one_thread)
batch = pytest.fixture(scope="module")(padded_batch)


def torch_model(seed=0, **variant):
    """A PyTorch GPT-2 in which every parameter matters (no bias 0, no scale 1)."""
    config = transformers.GPT2Config(**SHAPE | variant, attn_implementation="eager")
    # Built with xIELU's parameters in bf16, whatever the model's type.
    model = transformers.GPT2LMHeadModel(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = 0.3 * torch.randn(value.shape, generator=generator)
            value.copy_(1 + noise if "ln_" in name and "weight" in name else noise)
    return model


def exact(model):
    """The same weights and function in f64 (where "upcast" would round to f32)."""
    model = copy.deepcopy(model).double()
    for block in model.transformer.h:
        block.attn.reorder_and_upcast_attn = False
    return model


def ours(model, folder, **options):
    model.save_pretrained(folder)
    return load_backbone(folder, **options)


def prefix_of(model, rows=1, seed=1):
    config = model.config
    width = config.n_embd // config.n_head
    shape = (config.n_layer, rows, PREFIX, config.n_head, width)
    rng = np.random.default_rng(seed)
    return KV(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)))


def torch_pair(prefix, model):
    """Keys and values as PyTorch leaves of the model's type."""
    pair = (torch.from_numpy(np.array(x)) for x in (prefix.keys, prefix.values))
    return [x.to(model.dtype).requires_grad_() for x in pair]


def torch_logits(model, tokens, pair=None, mask=None, positions=None):
    """With keys and values [L N P H K] as past key values."""
    cache = None
    if pair is not None:
        cache = transformers.DynamicCache()
        for layer, kv in enumerate(zip(*pair, strict=True)):
            kv = (x.transpose(1, 2).expand(len(tokens), -1, -1, -1) for x in kv)
            cache.update(*kv, layer)
        if mask is not None:
            mask = np.pad(mask, ((0, 0), (PREFIX, 0)), constant_values=True)
    return model(
        torch.from_numpy(tokens),
        attention_mask=None if mask is None else torch.from_numpy(mask.astype(int)),
        position_ids=None if positions is None else torch.tensor(positions),
        past_key_values=cache,
        use_cache=cache is not None,
    ).logits


@torch.no_grad()
def peer_and_truth(model, reference, tokens, prefix, mask, positions):
    """PyTorch's logits in the type of `model`, and in f64."""
    pairs = [prefix and torch_pair(prefix, each) for each in (model, reference)]
    return (
        torch_logits(model, tokens, pairs[0], mask, positions),
        torch_logits(reference, tokens, pairs[1], mask, positions),
    )


@jax.jit
def our_logits(backbone, tokens, prefix, mask, positions):
    return backbone(tokens, prefix=prefix, mask=mask, positions=positions)


def assert_within_rounding(result, peer, truth, epsilon=2.0**-23):
    """`result` is as close to `truth` as four times its `peer` in the same type is."""
    result, peer, truth = (np.asarray(x, np.float64) for x in (result, peer, truth))
    error, peer_error = abs(result - truth).max(), abs(peer - truth).max()
    size = abs(truth).max()
    print(
        f"error {error:.2e}, peer's {peer_error:.2e}, "
        f"difference {abs(result - peer).max():.2e}, size {size:.1f}"
    )
    assert peer_error < 1e3 * epsilon * size, "a case too ill-conditioned to tell much"
    assert error <= 4 * peer_error + 4 * epsilon * size


def check(model, backbone, reference, tokens, prefix=None, mask=None, positions=None):
    """Our logits against PyTorch's on the real tokens; returns the true ones."""
    result = our_logits(backbone, tokens, prefix, mask, positions)
    real = np.ones(tokens.shape, bool) if mask is None else mask
    peer, truth = peer_and_truth(model, reference, tokens, prefix, mask, positions)
    assert truth.std() > 0.5, "logits too small to tell models apart"
    assert_within_rounding(result[real], peer[real], truth[real])
    return truth[real].numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_pytorch(variant, batch, tmp_path):
    model = torch_model(**VARIANTS[variant])
    backbone, reference = ours(model, tmp_path), exact(model)
    tokens, mask, positions = batch
    check(model, backbone, reference, tokens, None, mask, positions)
    prefix = prefix_of(model)
    offset = positions + PREFIX
    check(model, backbone, reference, tokens, prefix, mask, offset)


# One name for each function; the names that share one are compared with it below.
@pytest.mark.parametrize(
    "name", sorted({f: n for n, f in ACTIVATIONS.items()}.values())
)
def test_logits_with_each_activation(name, batch, tmp_path):
    model = torch_model(activation_function=name)
    backbone, reference = ours(model, tmp_path), exact(model)
    tokens, mask, positions = batch
    check(model, backbone, reference, tokens, prefix_of(model), mask, positions)


def test_every_activation_of_transformers_is_there():
    from transformers.activations import ACT2FN

    assert set(ACTIVATIONS) == set(ACT2FN)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_and_its_slope(name):
    from transformers.activations import ACT2FN

    theirs = ACT2FN[name].float()
    parameters = {k: jnp.asarray(v.tolist()) for k, v in theirs.state_dict().items()}
    assert parameters.keys() == PARAMETERS.get(name, {}).keys()
    for key, start in PARAMETERS.get(name, {}).items():
        # transformers rounds xielu's to bf16.
        np.testing.assert_allclose(parameters[key], start, rtol=2**-8)
    x = np.linspace(-12, 12, 4000, dtype=np.float32)  # misses every kink
    function = activation(name)
    value = function(jnp.asarray(x), **parameters)
    slope = jax.grad(lambda x: function(x, **parameters).sum())(jnp.asarray(x))

    def peer(module, x):
        x.requires_grad_()
        value = module(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    peer_value, peer_slope = peer(theirs, torch.from_numpy(x))
    true_value, true_slope = peer(
        copy.deepcopy(theirs).double(), torch.from_numpy(x).double()
    )
    assert_within_rounding(value, peer_value, true_value)
    assert_within_rounding(slope, peer_slope, true_slope)


@pytest.mark.parametrize("with_prefix", [False, True])
def test_default_positions_and_masks(with_prefix, batch, tmp_path):
    """What is left out means what it means in Hugging Face."""
    model = torch_model()
    backbone, reference = ours(model, tmp_path), exact(model)
    tokens, mask, _ = batch
    prefix = prefix_of(model) if with_prefix else None
    alone = check(model, backbone, reference, tokens, prefix)
    masked = check(model, backbone, reference, tokens, prefix, mask=mask)
    later = np.broadcast_to(np.arange(TOKENS) + 9, tokens.shape)
    placed = check(model, backbone, reference, tokens, prefix, positions=later)
    # The row without padding, in PyTorch's f64: 2e-16 times logits up to 10, some sums.
    assert abs(alone[:TOKENS] - masked[:TOKENS]).max() < 1e-12
    assert abs(alone - placed).max() > 0.1


def test_a_prefix_for_each_row(batch, tmp_path):
    model = torch_model()
    tokens, mask, positions = batch
    prefix = prefix_of(model, rows=ROWS)
    backbone, reference = ours(model, tmp_path), exact(model)
    check(model, backbone, reference, tokens, prefix, mask, positions)


def test_each_variant_is_told_apart(batch):
    """The cases above have power: a forgotten option moves logits by far more."""
    tokens, mask, positions = batch
    same = {"upcast", "n_inner", "untied", "exact positions", "one layer"}
    with torch.no_grad():
        plain = torch_logits(torch_model(), tokens, None, mask, positions)[mask]
        for variant in VARIANTS.keys() - same - {"default"}:
            model = torch_model(**VARIANTS[variant])
            other = torch_logits(model, tokens, None, mask, positions)[mask]
            assert abs(other - plain).max() > 0.1, variant


@pytest.mark.parametrize("variant", ["default", "upcast"])
@pytest.mark.parametrize("with_prefix", [False, True])
def test_bfloat16(variant, with_prefix, batch, tmp_path):
    """Against the f64 model of the weights and prefix that bf16 keeps."""
    model = torch_model(**VARIANTS[variant]).bfloat16()
    backbone, reference = ours(model, tmp_path, dtype="bfloat16"), exact(model)
    tokens, mask, positions = batch
    prefix = None
    if with_prefix:
        prefix = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), prefix_of(model)
        )
    result = our_logits(backbone, tokens, prefix, mask, positions)
    peer, truth = peer_and_truth(model, reference, tokens, prefix, mask, positions)
    assert result.dtype == jnp.float32
    assert_within_rounding(
        result[mask], peer.float()[mask], truth[mask], epsilon=2.0**-7
    )


@pytest.mark.parametrize("variant", ["default", "scaled by layer"])
def test_prefix_gradient_equals_that_of_pytorch(variant, batch, tmp_path):
    model = torch_model(**VARIANTS[variant])
    backbone, reference = ours(model, tmp_path), exact(model)
    tokens, mask, positions = batch
    prefix = prefix_of(model)
    weight = np.random.default_rng(2).normal(size=(*mask.shape, SHAPE["vocab_size"]))
    weight = (weight * mask[..., None]).astype(np.float32)

    @jax.jit
    def gradient(prefix):
        def loss(prefix):
            logits = our_logits(backbone, tokens, prefix, mask, positions)
            return (logits * weight).sum()

        return jax.grad(loss)(prefix)

    def peer_gradient(model):
        leaves = torch_pair(prefix, model)
        logits = torch_logits(model, tokens, leaves, mask, positions)
        loss = (logits * torch.from_numpy(weight)).sum()
        return torch.autograd.grad(loss, leaves)

    for result, peer, truth in zip(
        jax.tree.leaves(gradient(prefix)),
        peer_gradient(model),
        peer_gradient(reference),
        strict=True,
    ):
        assert_within_rounding(result, peer, truth)
