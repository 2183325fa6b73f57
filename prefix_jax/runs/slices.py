"""TPU slices that need not be there: their chips, and what stands for their devices."""

import os
import re
from collections.abc import Sequence

from prefix_jax.errors import InputError, first_line

MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 192}
"""GB of each chip, by Google's documentation (cloud.google.com/tpu/docs)."""

TWO_CORES = ("tpu7x",)
"""Chips that are two devices."""

MEGACORE = ("v4",)
"""Chips whose two cores are one device on a TPU VM, but here only where it is asked."""

FLAT = ("v5e", "v6e")
"""Chips that are wired in two directions; others are in three."""


def slice_devices(topology: str) -> Sequence:
    """Descriptions of a TPU slice's devices, such as those of "v5e:4x4".

    Raises InputError without the compiler, and for a slice that it does not know.
    """
    chip, _, sizes = topology.partition(":")
    axes = "1" if chip in FLAT else "2" if chip in MEMORY else "1,2"
    expected = (
        "expected a chip and how many of them in each direction, of which "
        f"{' and '.join(FLAT)} have two and others three, such as v5e:4x4, v4:2x2x1, "
        "v5p:2x2x1 or v6e:2x2"
    )
    # libtpu ends the process where a size is 0.
    if not re.fullmatch(rf"[1-9]\d{{,3}}(x[1-9]\d{{,3}}){{{axes}}}", sizes):
        raise InputError(f'topology is "{topology}"; {expected}')
    # Else libtpu asks the cloud which machine this is, for minutes, and complains.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    # Several processes may compile at once: none of them has a chip.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    more = {}
    if topology.partition(":")[0] in MEGACORE:
        more["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **more
        )
    except Exception as error:  # jax has no type of its own for either
        text = str(error)
        absent = "libtpu", "unknown backend", "tpu support not installed"
        if any(words in text.lower() for words in absent):
            raise InputError(
                "the compiler for TPUs is not here: pip install 'prefix_jax[tpu]' "
                f"({first_line(error)})"
            ) from error
        raise InputError(
            f'topology "{topology}" is not known ({first_line(error)}); {expected}'
        ) from error
    return found.devices
