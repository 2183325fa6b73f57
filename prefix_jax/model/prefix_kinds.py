"""The kinds of learned prefix: keys and values, the paper's MLP, embeddings.

Each is a pytree module; `fold(backbone)` gives the `KV` that attention sees, and that
is also what is stored after training (of embeddings the vectors are).
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import Precision
from jaxtyping import Array, Float, PRNGKeyArray

from prefix_jax.errors import InputError
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix_form import Form
from prefix_jax.model.prefix_start import activations
from prefix_jax.model.shape import Shape


@runtime_checkable
class Prefix(Protocol):
    """What every kind of prefix is: a pytree that gives a `KV` with N = 1."""

    def fold(self, backbone: Backbone, *, key: PRNGKeyArray | None = None) -> KV: ...


class FlatPrefix(nnx.Module):
    """The keys and values themselves, in units of the backbone's own activations.

        keys, values              [L P H K]   trained; [R H K] with `Form.lengths`
        gate                      [l H]       trained, of the l layers that have it
        key_scale, value_scale    [L 1 H 1]   fixed: `activation_scale`

    Keys and values of one model differ in size by an order of magnitude between layers
    and heads; in these units one learning rate means the same everywhere.
    """

    def __init__(
        self,
        kv: KV,
        scale: KV,
        form: Form = Form(),
        *,
        gate: Float[Array, "l H"] | None = None,
    ):
        """Starts as `kv` [L 1 P H K]; `scale` [L 1 1 H 1]."""
        self.form = form
        self.key_scale = nnx.Variable(scale.keys[:, 0])
        self.value_scale = nnx.Variable(scale.values[:, 0])
        self.keys = nnx.Param(form.pack(kv.keys[:, 0] / scale.keys[:, 0]))
        self.values = nnx.Param(form.pack(kv.values[:, 0] / scale.values[:, 0]))
        self.gate = nnx.data(None if gate is None else nnx.Param(gate))

    def __call__(self, *, key: PRNGKeyArray | None = None) -> KV:
        """The prefix as KV [L 1 P H K] in f32.

        With the key of a training step: with dropout, and cut to a length drawn from
        `Form.nested`.
        """
        drop, draw = _two(key)
        keys = self.form.unpack(self.keys[...]) * self.key_scale[...]
        values = self.form.unpack(self.values[...]) * self.value_scale[...]
        keys, values = self.form.drop((keys, values), drop)
        return self.form.kv(keys, values, _value(self.gate), draw)

    def fold(self, backbone: Backbone, *, key: PRNGKeyArray | None = None) -> KV:
        """The same; the backbone is not needed."""
        return self(key=key)


class MLPPrefix(nnx.Module):
    """Li & Liang 2021, section 4.3: embedding -> linear -> tanh -> linear.

    embedding     [P D]
    inner_kernel  [D M]          M = PrefixConfig.hidden
    inner_bias    [M]
    outer_kernel  [M l 2 H K]    l: the layers that have the prefix; 2: key, value
    outer_bias    [l 2 H K]
    gate          [l H]          if it is gated
    """

    def __init__(
        self,
        shape: Shape,
        length: int,
        hidden: int,
        form: Form = Form(),
        *,
        key: PRNGKeyArray,
        gate: Float[Array, "l H"] | None = None,
    ):
        """PyTorch's initial distributions, as the paper's code: N(0,1) and uniform."""
        self.form = form
        self.layers = shape.n_layer
        keys = jax.random.split(key, 5)
        layers = len(np.arange(shape.n_layer)[form.layers])
        out = (layers, 2, shape.kv_heads, shape.head_width)

        def uniform(key, dims, inputs):
            return jax.random.uniform(
                key, dims, minval=-(inputs**-0.5), maxval=inputs**-0.5
            )

        d = shape.n_embd
        self.embedding = nnx.Param(jax.random.normal(keys[0], (length, d)))
        self.inner_kernel = nnx.Param(uniform(keys[1], (d, hidden), d))
        self.inner_bias = nnx.Param(uniform(keys[2], (hidden,), d))
        self.outer_kernel = nnx.Param(uniform(keys[3], (hidden, *out), hidden))
        self.outer_bias = nnx.Param(uniform(keys[4], out, hidden))
        self.gate = nnx.data(None if gate is None else nnx.Param(gate))

    def inner(self) -> Float[Array, "P M"]:
        """What the last layer reads."""
        product = jnp.dot(
            self.embedding[...], self.inner_kernel[...], precision=Precision.HIGHEST
        )
        return jnp.tanh(product + self.inner_bias)

    def __call__(self, *, key: PRNGKeyArray | None = None) -> KV:
        """The prefix as KV [L 1 P H K] in f32; `key` as in `FlatPrefix`."""
        drop, draw = _two(key)
        both = jnp.einsum(
            "pm,mlchk->clphk",
            self.inner(),
            self.outer_kernel[...],
            precision=Precision.HIGHEST,
        )
        both += jnp.moveaxis(self.outer_bias[...], 1, 0)[:, :, None]
        if self.form.lengths is not None:
            every = jnp.zeros((2, self.layers, *both.shape[2:]))
            both = every.at[:, self.form.layers].set(both)
        keys, values = self.form.drop((both[0], both[1]), drop)
        return self.form.kv(keys, values, _value(self.gate), draw)

    def fold(self, backbone: Backbone, *, key: PRNGKeyArray | None = None) -> KV:
        """The same; the backbone is not needed."""
        return self(key=key)

    def start_from(self, kv: KV) -> None:
        """Set the last layer so that the prefix equals `kv` [L 1 P H K].

        Least squares in f64 on the inner activations; exact (to f32 rounding) because
        P <= M rows of tanh features are independent. Part of construction.
        """
        target = np.stack([kv.keys[:, 0], kv.values[:, 0]]).astype(np.float64)
        target = np.einsum("clphk->plchk", target[:, self.form.layers])
        inner = np.asarray(self.inner(), np.float64)
        if inner.shape[0] > inner.shape[1]:
            raise InputError(
                f"{inner.shape[0]} prefix positions cannot start from given words "
                f"through an MLP of width {inner.shape[1]}; raise prefix.hidden to "
                f"{inner.shape[0]} or lower prefix.length"
            )
        bias = target.mean(0)
        kernel, *_ = np.linalg.lstsq(
            inner, (target - bias).reshape(len(target), -1), rcond=None
        )
        self.outer_kernel[...] = jnp.asarray(
            kernel.reshape(inner.shape[1], *target.shape[1:]), jnp.float32
        )
        self.outer_bias[...] = jnp.asarray(bias, jnp.float32)


class EmbeddingPrefix(nnx.Module):
    """Vectors that the backbone reads as words (Lester et al. 2021; the paper's 7.2).

        vectors          [P D]   trained
        embedding_scale  [1 1]   fixed: the size of the backbone's own embeddings

    Attention is causal, so their keys and values depend on no text: one pass of the
    frozen backbone over P positions makes a KV of them, once per step and not per row.
    """

    def __init__(
        self,
        vectors: Float[Array, "P D"],
        scale: Float[Array, "1 1"],
        form: Form = Form(),
    ):
        """Starts as `vectors`, in the units of the backbone's embeddings."""
        self.form = form
        self.embedding_scale = nnx.Variable(scale)
        self.vectors = nnx.Param(vectors / scale)

    def embeddings(self) -> Float[Array, "P D"]:
        """The vectors as the backbone reads them, f32."""
        return self.vectors[...] * self.embedding_scale[...]

    def fold(self, backbone: Backbone, *, key: PRNGKeyArray | None = None) -> KV:
        """The prefix as KV [L 1 P H K] in f32; `key` as in `FlatPrefix`.

        The gradient goes through the backbone's pass over the vectors.
        """
        drop, draw = _two(key)
        read = activations(backbone, self.form.drop(self.embeddings(), drop))
        return self.form.kv(read.keys[:, 0], read.values[:, 0], key=draw)


def _two(key: PRNGKeyArray | None):
    return (None, None) if key is None else jax.random.split(key)


def _value(parameter: nnx.Param | None):
    return None if parameter is None else parameter[...]
