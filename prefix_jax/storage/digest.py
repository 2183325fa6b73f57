"""Checksums of arrays, computed where they lie, however they are sharded.

An array's bits are 8-, 16- or 32-bit words. Its digest is two sums over them, modulo
2^32, of a hash of word and place. Sums of integers have no order: any number of devices
gives the same. At a place, two words never have one hash, so that any one word that
changes changes the sum.
"""

import hashlib
import json
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

_SEEDS = (0x9E3779B9, 0x85EBCA6B)


def array_digests(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """16 hex digits for each array, of its elements and their places."""
    sums = jax.device_get(_sums(dict(arrays)))
    return {
        name: "".join(f"{int(part):08x}" for part in found)
        for name, found in sums.items()
    }


def text_digest(value: object) -> str:
    """16 hex digits of what is in `value`, JSON, in whatever order its keys are."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@jax.jit
def _sums(arrays: dict[str, Array]) -> dict[str, UInt32[Array, "2"]]:
    return {name: _sum(array) for name, array in arrays.items()}


def _sum(array: Array) -> UInt32[Array, "2"]:
    words = _words(array)
    places = _places(words.shape)
    hashes = [_mixed(words ^ _mixed(places + np.uint32(seed))) for seed in _SEEDS]
    return jnp.stack([jnp.sum(found, dtype=jnp.uint32) for found in hashes])


def _words(array: Array) -> UInt32[Array, "..."]:
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
    # Of 64 bits two words come out, on an axis of their own.
    words = jax.lax.bitcast_convert_type(array, bits[array.dtype.itemsize])
    return words.astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Row-major number of each element, modulo 2^32."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        places += stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return places


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Another number for each, random to look at (MurmurHash3's finaliser, Appleby)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
