"""What a process of our own sets up before it imports jax; a library must not."""

import ctypes
import os
from pathlib import Path

# malloc.h of the GNU C library.
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, instead of giving it back to the kernel.

    On CPUs, each run of a compiled program allocates its temporaries anew, hundreds of
    megabytes at a time. Handed back after each step, they return page by page, zeroed:
    a quarter of a small model's step. Up to 2 GiB stay with the process for its life.
    To be called before threads start; without the GNU C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_ARENA_MAX, 1)


def keep_compiled_programs() -> None:
    """Let jax keep what it compiles in the user's cache folder, for the next process.

    At most 1 GiB, the least recently used programs go first. jax's own environment
    variables win; JAX_COMPILATION_CACHE_DIR="" turns it off.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return
    folder = Path(home) / "prefix_jax" / "programs"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
