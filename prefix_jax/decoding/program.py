"""The compiled program from prompts to tokens, and how devices share it."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.beam import EarlyStopping, beam_search
from prefix_jax.decoding.rules import Rules
from prefix_jax.decoding.sample import sample
from prefix_jax.mesh import by_prompts
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV


class Written(NamedTuple):
    """B prompts, each with G sequences of at most M tokens after it, the best first."""

    tokens: Int[Array, "B G M"]
    lengths: Int[Array, "B G"]
    log_probs: Float[Array, "B G"]
    """Of those tokens, under the model itself, before any rule."""


@dataclasses.dataclass(frozen=True)
class Method:
    """The settings that the program is compiled for."""

    beam: bool
    group: int
    """Sequences of each prompt that are written: all beams."""
    max_new_tokens: int
    rules: Rules
    length_penalty: float
    early_stopping: EarlyStopping

    @classmethod
    def of(cls, decode: DecodeConfig, end: Sequence[int]) -> "Method":
        """As a recipe asks for; `end` are the tokens that end a text."""
        beam = decode.method == "beam"
        return cls(
            beam=beam,
            group=decode.beams if beam else decode.sequences,
            max_new_tokens=decode.max_new_tokens,
            rules=Rules.of(decode, end),
            # Only a program of beams depends on these.
            length_penalty=decode.length_penalty if beam else 1.0,
            early_stopping=decode.early_stopping if beam else "no",
        )


@partial(jax.jit, static_argnames=("method", "mesh"))
def write(
    backbone: Backbone,
    prefix: KV | None,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    seeds: UInt32[Array, "B 2"],
    stops: Int[Array, "states V"] | None = None,
    *,
    method: Method,
    mesh: Mesh | None = None,
) -> Written:
    """The sequences after each prompt; `seeds` as `sample.start_sampling` has them.

    Under a `mesh` B is a multiple of its axis `data`. Each part of the devices writes
    after its own rows and is done when they are: no part waits for another or sends it
    anything. (Left to itself XLA would gather the scores of all rows for `top_k`.)
    """
    how = {"max_new_tokens": method.max_new_tokens, "rules": method.rules}

    def own_rows(backbone, prefix, tokens, mask, seeds, stops):
        given = backbone, prefix, tokens, mask
        if method.beam:
            out = beam_search(
                *given,
                stops,
                width=method.group,
                length_penalty=method.length_penalty,
                early_stopping=method.early_stopping,
                **how,
            )
        else:
            out = sample(*given, seeds, stops, group=method.group, **how)
        return Written(out.tokens, out.lengths, out.log_probs)

    if mesh is not None and mesh.shape["data"] > 1:
        whole, rows = PartitionSpec(), by_prompts(mesh).spec
        each_its_own = prefix is not None and prefix.number > 1
        prefixes = by_prompts(mesh, axis=1).spec if each_its_own else whole
        own_rows = jax.shard_map(
            own_rows,
            mesh=mesh,
            in_specs=(whole, prefixes, rows, rows, rows, whole),
            out_specs=rows,
            # The other axes part weights, which is left to XLA.
            axis_names={"data"},
            # Loops start from zeros, the same everywhere, unlike what follows.
            check_vma=False,
        )
    return own_rows(backbone, prefix, tokens, mask, seeds, stops)
