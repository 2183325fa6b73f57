"""Small random backbones, and folders of their files for the tests to spoil."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.gpt2_config import GPT2Config
from prefix_jax.seal import SUMS

SHAPE = {"vocab_size": 11, "n_positions": 8, "n_embd": 6, "n_layer": 3, "n_head": 2}
TOKENS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)


def random_backbone(dtype="float32", **variant) -> GPT2:
    """Every leaf random, so that no two of them can be confused."""
    config = GPT2Config(**SHAPE | variant)
    shapes = jax.eval_shape(
        lambda key: GPT2(config, key=key, dtype=dtype), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.dtype(dtype)), shapes
    )


def assert_same(one, other):
    """The same tree, bit for bit."""
    chex.assert_trees_all_equal_structs(one, other)
    chex.assert_trees_all_equal(one, other, strict=True)


def rewrite(folder, change):
    """Let `change` edit the folder's tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder, count=3):
    """Cut model.safetensors into shards with an index; returns the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::count]}, folder / file)
        files |= dict.fromkeys(names[i::count], file)
    return write_index(folder, files)


def write_index(folder, files):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def unseal(folder):
    """A stored prefix that is to be changed by hand: without its checksums."""
    (folder / SUMS).unlink(missing_ok=True)


def as_by_peft(folder):
    """A stored prefix without what is ours alone, as PEFT itself writes it."""
    unseal(folder)
    (folder / "prefix_jax.json").unlink()
