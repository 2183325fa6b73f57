"""The activation functions that a configuration may name."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefix_jax.errors import InputError


def _gelu_tanh(x):
    # 0.5 (1 + tanh(u)) = sigmoid(2u), without the cancellation where u is negative:
    # XLA's tanh is off by 2e-7, which the slope of jax.nn.gelu magnifies to 3.5e-6.
    return x * jax.nn.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


def _gelu_erf(x):
    return jax.nn.gelu(x, approximate=False)


def _laplace(x, mean=0.707107, deviation=0.282095):
    return 0.5 * (1.0 + jax.lax.erf((x - mean) / (deviation * jnp.sqrt(2.0))))


def _prelu(x, weight):
    return jnp.where(x >= 0, x, weight * x)


def _xielu(x, alpha_p, alpha_n, beta, eps):
    # Hugging Face keeps beta and eps as buffers: stored, never trained.
    beta, eps = jax.lax.stop_gradient((beta, eps))
    positive = jax.nn.softplus(alpha_p) * jnp.square(x)
    negative = jnp.expm1(jnp.minimum(x, eps)) - x
    negative *= beta + jax.nn.softplus(alpha_n)
    return jnp.where(x > 0, positive, negative) + beta * x


# Names as in transformers' ACT2FN.
ACTIVATIONS: dict[str, Callable] = {
    "gelu": _gelu_erf,
    "gelu_python": _gelu_erf,
    "gelu_10": lambda x: jnp.clip(_gelu_erf(x), -10.0, 10.0),
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "prelu": _prelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "xielu": _xielu,
}

# Arguments of some of them that every layer has for itself, and where they start.
PARAMETERS: dict[str, dict[str, Sequence[float] | float]] = {
    "prelu": {"weight": [0.25]},
    "xielu": {
        "alpha_p": [math.log(math.expm1(0.8))],
        "alpha_n": [math.log(math.expm1(0.3))],
        "beta": 0.5,
        "eps": -1e-6,
    },
}


def activation(name: str) -> Callable[..., Float[Array, "..."]]:
    """The function that `name` means, one of `ACTIVATIONS`.

    It takes the array, and by keyword the layer's own `PARAMETERS[name]` if it has any.
    """
    return ACTIVATIONS[name]


def check_activation(name: str, field: str, *, learned: bool) -> None:
    """InputError, with the configuration's `field`, unless `name` means a function.

    `learned`: whether one may have `PARAMETERS`.
    """
    known = ACTIVATIONS.keys() if learned else ACTIVATIONS.keys() - PARAMETERS.keys()
    if name not in known:
        raise InputError(
            f"{field} {name!r} is not supported; "
            f"expected one of {', '.join(sorted(known))}"
        )
