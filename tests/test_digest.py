"""Digests of arrays: of all their bits, wherever they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prefix_jax.mesh import make_mesh
from prefix_jax.storage.digest import array_digests, text_digest

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]


def digest(array) -> str:
    return array_digests({"x": jnp.asarray(array)})["x"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype):
    rng = np.random.default_rng(0)
    array = np.asarray(jnp.asarray(rng.normal(size=(2, 3)), dtype))
    width = 1 if dtype == "bool" else 8
    found = {digest(array)}
    for byte in range(array.nbytes):
        for bit in range(width):
            changed = array.copy()
            changed.view(np.uint8).reshape(-1)[byte] ^= 1 << bit
            found.add(digest(changed))
    assert len(found) == 1 + array.nbytes * width


def test_places_count():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    permuted = [x[::-1], x[:, ::-1], x.swapaxes(0, 1), x.at[0, 0, 0].set(x[0, 0, 1])]
    assert len({digest(one) for one in (x, *permuted)}) == 5
    assert digest(-jnp.zeros(3)) != digest(jnp.zeros(3))
    assert digest(jnp.zeros((0, 3))) == digest(jnp.zeros(0))


def test_devices_do_not_count():
    x = jax.random.normal(jax.random.key(0), (16, 8))
    mesh = make_mesh(batch_size=8)
    assert mesh.size == 8
    for axes in ((), ("data",), (None, "data")):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
        assert digest(placed) == digest(x)


def test_keys_of_json_have_no_order():
    assert text_digest({"a": 1, "b": [1.5, None]}) == text_digest(
        {"b": [1.5, None], "a": 1}
    )
    assert text_digest({"a": 1}) != text_digest({"a": 2})
