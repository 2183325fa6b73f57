"""GPT-2's configuration, and its activations' parameters."""

import jax
import jax.numpy as jnp
import pytest

from prefix_jax.errors import InputError
from prefix_jax.model.activations import PARAMETERS, activation
from prefix_jax.model.gpt2_config import GPT2Config


def test_config_reads_what_hugging_face_writes():
    values = {
        "model_type": "gpt2",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "max_position_embeddings": 16,
        "eos_token_id": [5, 6],
        "attn_pdrop": 0.1,
        "summary_type": "cls_index",
        "auto_map": {"AutoModel": "code.Model"},
    }
    expected = GPT2Config(
        n_embd=8,
        n_head=2,
        n_layer=3,
        n_positions=16,
        eos_token_id=5,
        more_eos_token_ids=(6,),
    )
    assert GPT2Config.from_dict(values) == expected
    assert hash(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_embd": 10, "n_head": 3}, "n_embd 10 is not a multiple of n_head 3"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_layer": True}, "n_layer is True"),
        ({"n_inner": -1}, "n_inner is -1"),
        ({"activation_function": "geluu"}, "'geluu' is not supported.*gelu_new"),
    ],
)
def test_config_says_what_it_cannot_be(values, message):
    with pytest.raises(InputError, match=message):
        GPT2Config.from_dict(values)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_activations_are_trained(name):
    """But for xielu's beta and eps, which Hugging Face keeps as buffers."""
    x = jnp.linspace(-2, 2, 6)
    starts = {key: jnp.array(start) for key, start in PARAMETERS[name].items()}
    slopes = jax.grad(lambda starts: activation(name)(x, **starts).sum())(starts)
    for key, slope in slopes.items():
        assert bool((slope != 0).all()) == (key not in ("beta", "eps")), key
