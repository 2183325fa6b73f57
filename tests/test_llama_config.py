"""What a `config.json` of the Llama family says, and what is refused."""

import json
import math

import numpy as np
import pytest

from prefix_jax.errors import InputError
from prefix_jax.model import gpt2_config
from prefix_jax.model.families import FAMILIES, shape_of
from prefix_jax.model.llama_config import LlamaConfig, known_fields
from prefix_jax.model.rope import Rope
from prefix_jax.model.shape import HARMLESS

KINDS = [kind for kind, family in FAMILIES.items() if family.config is LlamaConfig]
SMALL = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_leaves_all_out_means_what_transformers_means(kind):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(kind)
    ours = shape_of({"model_type": kind})
    assert ours.vocab_size == theirs.vocab_size
    assert ours.n_positions == theirs.max_position_embeddings
    assert ours.n_embd == theirs.hidden_size
    assert ours.n_inner == theirs.intermediate_size
    assert ours.n_layer == theirs.num_hidden_layers
    assert ours.n_head == theirs.num_attention_heads
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_width == getattr(theirs, "head_dim", 128)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.activation_function == theirs.hidden_act
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.rope.fields() == theirs.rope_parameters
    assert (ours.bos_token_id, ours.eos_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
    )


@pytest.mark.parametrize("kind", ["gpt2", *KINDS])
def test_every_field_of_transformers_is_known(kind):
    """A release of transformers that adds one is to be looked at."""
    transformers = pytest.importorskip("transformers")
    written = transformers.AutoConfig.for_model(kind).to_dict().keys()
    known = gpt2_config.known_fields() if kind == "gpt2" else known_fields(kind)
    assert {name for name in written if name[0] != "_"} <= known | HARMLESS


@pytest.mark.parametrize("kind", FAMILIES)
def test_fields_come_back(kind):
    small = {} if kind == "gpt2" else SMALL
    ours = shape_of({"model_type": kind, **small, "eos_token_id": [5, 6]})
    assert ours.eos_token_id == 5 and hash(ours)
    assert ours.fields()["eos_token_id"] == [5, 6]
    assert shape_of(ours.fields()).fields() == ours.fields()


def test_a_config_made_here_comes_back():
    windows = LlamaConfig(model_type="qwen2", n_layer=3, sliding_window=5)
    assert shape_of(windows.fields()).windows == windows.windows == (5, 5, 5)
    for kind, field in (
        ("llama", {"sliding_window": 5}),
        ("qwen3", {"mlp_bias": True}),
    ):
        with pytest.raises(InputError, match=f"a {kind} has none"):
            LlamaConfig(model_type=kind, **field)


def test_older_files_say_rope_elsewhere():
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    expected = LlamaConfig.from_dict(SMALL | {"rope_parameters": new})
    assert LlamaConfig.from_dict(SMALL | old) == expected
    both = old | {"rope_parameters": new | {"rope_theta": None}}
    assert LlamaConfig.from_dict(SMALL | both) == expected


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_changes_nothing_is_passed_over(kind):
    more = {
        "is_causal": True,
        "pruned_heads": {},
        "temperature": 0.6,
        "num_beams": 5,
        "cross_attention_hidden_size": None,
        "tie_encoder_decoder": False,
    }
    if kind != "gpt2":
        more["partial_rotary_factor"] = 1.0
    assert shape_of({"model_type": kind, **more}) == shape_of({"model_type": kind})


def test_windows_are_those_of_their_layers():
    given = {"model_type": "qwen2", **SMALL, "sliding_window": 5}
    assert shape_of(given).windows is None
    given |= {"use_sliding_window": True, "max_window_layers": 1}
    full, *rest = shape_of(given).windows
    assert full > 10**9 and rest == [5, 5]
    named = given | {"layer_types": ["sliding_attention", *["full_attention"] * 2]}
    assert [size == 5 for size in shape_of(named).windows] == [True, False, False]
    mistral = {**SMALL, "model_type": "mistral", "sliding_window": 5}
    assert shape_of(mistral).windows == (5, 5, 5)


def test_yarn_reaches_as_far_as_it_stretches():
    """Also by a file that still says what it starts from (Qwen2.5's card asks so)."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    given = {"model_type": "qwen2", **SMALL, "rope_scaling": yarn}
    for said in (64, 256):
        shape = shape_of(given | {"max_position_embeddings": said})
        assert shape.n_positions == 256
        assert shape_of(shape.fields()).fields() == shape.fields()


def test_a_whole_number_is_the_same_number():
    """As a JSON has it, or a GGUF; what tells of training only changes nothing."""
    whole = {"rope_type": "linear", "rope_theta": 5_000_000, "factor": 8}
    other = {"rope_type": "linear", "rope_theta": 5e6, "factor": 8.0, "finetuned": True}
    one, two = (
        shape_of({"model_type": "qwen3", **SMALL, "rope_parameters": rope})
        for rope in (whole, other)
    )
    assert json.dumps(one.variant()) == json.dumps(two.variant())
    one, two = (
        shape_of({"model_type": "llama", **SMALL, "rope_theta": theta})
        for theta in (100_000, 1e5)
    )
    assert json.dumps(one.variant()) == json.dumps(two.variant())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'; expected one of gpt2"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'; .*, qwen3$"),
        ({"model_type": "mamba"}, "model_type is 'mamba'; .*, qwen3$"),
        ({"model_type": 3}, "model_type is 3"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type. is 'alibi'"),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 3.0},
            },
            "expected one of them",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 1.0,
                }
            },
            "low_freq_factor is 4.0",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized .* 'awq'.* GGUF"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"sliding_window": 5}, "sliding_window"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"head_dim": None, "hidden_size": 10}, "10 is not a multiple.* no head_dim"),
        ({"hidden_act": "prelu"}, "hidden_act .prelu. is not supported; .* gelu"),
        ({"hidden_act": "silly"}, "hidden_act 'silly' is not supported"),
        ({"rope_scaling": {"factor": 4.0}}, "factor is 4.0, which .*'default'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0, "beta_fast": 3.0}},
            "beta_fast is 3.0, which .*'linear'",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 1e-320}},
            "beta_fast is 1e-320",
        ),
        ({"model_type": "qwen3", "use_sliding_window": "false"}, "use_sliding_window"),
        ({"is_causal": False}, "is_causal is False"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"rope_parameters": 3}, "rope_parameters is 3"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, r"rope_type is \['linear'\]"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention"]},
            "layer_types is .*expected 3",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3},
            "no sliding_window",
        ),
        ({"model_type": "qwen2", "attention_bias": True}, "attention_bias"),
    ],
)
def test_what_cannot_be_honoured_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        shape_of({"model_type": "llama"} | SMALL | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"position_embedding_type": "alibi"}, "alibi"),
        ({"sliding_window": 5}, "sliding_window"),
        ({"n_embd": 768, "hidden_size": 24}, "n_embd is 768, but hidden_size.* 24"),
        ({"activation_function": "silly"}, "activation_function 'silly'"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"is_causal": False}, "is_causal is False"),
    ],
)
def test_a_gpt2_is_refused_what_it_cannot_honour(values, message):
    with pytest.raises(InputError, match=message):
        shape_of({"model_type": "gpt2"} | values)


def test_a_file_without_a_type_is_a_gpt2_only_with_its_fields():
    assert shape_of({"n_embd": 24, "_name_or_path": "x"}).n_embd == 24
    with pytest.raises(InputError, match="no model_type, and 'rope_theta' is no field"):
        shape_of({"rope_theta": 5e5, "hidden_size": 8})
    with pytest.raises(InputError, match="no model_type; add"):
        shape_of({})


@pytest.mark.parametrize("rope", [{}, {"rope_type": "linear", "factor": 2.0}])
def test_older_releases_of_transformers_read_the_same(rope):
    """Which know rope_theta and rope_scaling only."""
    written = LlamaConfig(rope=Rope(rope_theta=5e5, **rope)).fields()
    assert written["rope_theta"] == 5e5
    assert written.get("rope_scaling", {}) == rope


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
            "original_max_position_embeddings": 256,
        },
    ],
    ids=str,
)
def test_speeds_are_transformers_speeds(parameters):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {"rope_theta": 5000.0, **parameters}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_parameters=dict(given)
    )
    found, size = Rope.from_dict(given, 2048).inv_freq(32)
    kind = given.get("rope_type", "default")
    if kind == "default":
        exact = [5000.0 ** (-i / 16) for i in range(16)]
        np.testing.assert_allclose(found, exact, rtol=1e-6)
        return
    theirs, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    np.testing.assert_allclose(found, theirs.numpy(), rtol=1e-6)
    assert math.isclose(size, scale)
