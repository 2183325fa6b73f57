"""Which libraries a run was computed with."""

import contextlib
import importlib.metadata

_LIBRARIES = (
    "prefix-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
    "tensorflow-datasets",
)


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that decide what a run computes."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
