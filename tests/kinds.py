"""One prefix of every kind, for the tests of what all of them can do, and a text."""

import jax
import jax.numpy as jnp

from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig

LENGTH = 4
GATED = {"gate": True, "position_mode": "unshifted"}

KINDS = {
    "flat": {},
    "mlp": {"kind": "mlp", "hidden": 16},
    "embedding": {"kind": "embedding"},
    "infix": {"placement": "infix"},
    "layers": {"layers": (0, 2)},
    "mlp lengths": {"kind": "mlp", "hidden": 16, "lengths": (1, 0, 4)},
    "gate": GATED,
    "nested": {"nested": (1, 2)},
    "all": {
        **GATED,
        "placement": "infix",
        "lengths": (4, 0, 3),
        "nested": (2,),
        "dropout": 0.1,
    },
}

TEXT = jnp.asarray([[7, 8, 9, 10, 200, 3], [3, 1, 4, 1, 5, 9]])
SOURCE = 3
AFTER = jnp.broadcast_to(jnp.arange(TEXT.shape[1]) >= SOURCE, TEXT.shape)


def make(backbone, **settings):
    """A random prefix of LENGTH positions, or as `settings` say."""
    settings = {"init": "random"} | settings
    if "lengths" not in settings:
        settings = {"length": LENGTH} | settings
    return init_prefix(backbone, PrefixConfig(**settings), key=jax.random.key(7))


def opened(prefix):
    """With gates that are not 0 any more, if it has some."""
    if getattr(prefix, "gate", None) is not None:
        prefix.gate[...] = jax.random.normal(jax.random.key(8), prefix.gate.shape)
    return prefix


@jax.jit
def read(backbone, kv):
    """Logits of TEXT; of an infix the text after SOURCE tokens sees it."""
    after = AFTER if kv is not None and kv.placement == "infix" else None
    return backbone(TEXT, kv, after=after)
