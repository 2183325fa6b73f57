"""Law 1 for the Llama family: logits equal those of transformers' PyTorch models.

The bound is that of `test_gpt2_parity`: PyTorch's own f32 error against itself in f64,
four times, plus four units in the last place of the largest logit.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import ROWS, VOCABULARY, on_one_thread, padded_batch

from prefix_jax.model.kv import KV
from prefix_jax.model.loading import load_backbone
from prefix_jax.model.weights import save_backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS = {
    "llama": ("Llama", {}),
    "llama, all heads": ("Llama", {"num_key_value_heads": 6}),
    "llama, one head": ("Llama", {"num_key_value_heads": 1}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, head_dim": ("Llama", {"head_dim": 8}),
    "llama, gelu": ("Llama", {"hidden_act": "gelu", "rms_norm_eps": 0.1}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 3.0,
                "rope_theta": 100.0,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {}),
    "qwen2, window from layer 1": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3, biases, tied": (
        "Qwen3",
        {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3, windows of some layers": (
        "Qwen3",
        {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
}
PREFIX = 4

one_thread = pytest.fixture(scope="module", autouse=True)(on_one_thread)
batch = pytest.fixture(scope="module")(padded_batch)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """A PyTorch model in which every parameter matters, and ours from its files."""
    name, variant = VARIANTS[request.param]
    config = getattr(transformers, f"{name}Config")(**SHAPE | variant)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = 0.3 * torch.randn(value.shape, generator=generator)
            value.copy_(1 + noise if "norm" in key else noise)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, load_backbone(folder), folder


def exact(model):
    """The same weights and function in f64, where transformers rounds some to f32."""
    model = copy.deepcopy(model).double()
    # Eager attention takes its softmax in f32, PyTorch's own in the type it is given.
    model.config._attn_implementation = "sdpa"
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(norm, module)
    rotary = model.model.rotary_emb
    rotary.forward = functools.partial(turns, rotary)
    return model


def norm(module, x):
    size = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
    return module.weight * x / size


def turns(module, x, position_ids):
    angles = position_ids[..., None].double() * module.inv_freq
    angles = torch.cat([angles, angles], -1)
    scale = module.attention_scaling
    return angles.cos() * scale, angles.sin() * scale


def prefix_for(backbone, rows=1):
    config = backbone.config
    shape = config.n_layer, rows, PREFIX, config.kv_heads, config.head_width
    rng = np.random.default_rng(1)
    return KV(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)))


def torch_logits(model, tokens, prefix=None, mask=None, positions=None):
    """With keys and values [L N P H K] as past key values."""
    tokens = torch.from_numpy(tokens)
    rows = len(tokens)
    given = {}
    length = 0
    if prefix is not None:
        length = prefix.length
        cache = transformers.DynamicCache()
        for layer in range(prefix.keys.shape[0]):
            key, value = (
                torch.from_numpy(np.array(x[layer]))
                .to(model.dtype)
                .transpose(1, 2)
                .expand(rows, -1, -1, -1)
                for x in (prefix.keys, prefix.values)
            )
            cache.update(key, value, layer)
        given["past_key_values"] = cache
    if mask is not None:
        mask = np.concatenate([np.ones((rows, length), bool), mask], 1)
        given["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        given["position_ids"] = torch.from_numpy(positions + length)
    with torch.no_grad():
        return model(tokens, **given).logits.double().numpy()


def check(model, backbone, prefix, tokens, mask=None, positions=None):
    """Ours are within the bound of PyTorch's in f64, wherever there is a token."""
    given = tokens, prefix, mask, positions
    truth = torch_logits(exact(model), *given)
    theirs = torch_logits(model, *given)
    shift = PREFIX if prefix is not None else 0
    if mask is None:
        mine = jax.jit(backbone)(tokens, prefix)
        real = np.ones(tokens.shape, bool)
    else:
        mine = jax.jit(backbone)(tokens, prefix, mask, positions + shift)
        real = mask
    error = np.abs(np.asarray(mine, np.float64) - truth)[real].max()
    bound = 4 * np.abs(theirs - truth)[real].max()
    bound += 4 * np.spacing(np.float32(np.abs(truth[real]).max()))
    print(f"{error:.2e} of at most {bound:.2e}")
    assert error <= bound


@pytest.mark.parametrize("prefixes", [0, 1, ROWS])
def test_logits_equal_pytorchs(pair, batch, prefixes):
    model, backbone, _ = pair
    prefix = prefix_for(backbone, prefixes) if prefixes else None
    check(model, backbone, prefix, batch[0])


def test_padded_logits_equal_pytorchs(pair, batch):
    model, backbone, _ = pair
    if backbone.config.windows is not None:
        # transformers counts padding between prefix and text as distance, so that the
        # window of a row padded on the left is shorter than of the same text alone.
        batch = tuple(x[:2] for x in batch)
    check(model, backbone, prefix_for(backbone), *batch)
    check(model, backbone, None, *batch)


def test_our_files_are_transformers_files(pair, tmp_path, batch):
    model, backbone, _ = pair
    save_backbone(tmp_path, backbone)
    again = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    np.testing.assert_array_equal(
        torch_logits(again, batch[0]), torch_logits(model, batch[0])
    )
    assert load_backbone(tmp_path).config.fields() == backbone.config.fields()
