"""SST-2 on GPT-2 medium. The paper reports no classification: the settings are ours.

    prefix-jax train configs/sst2_gpt2_medium.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

A flat prefix of 20 positions, started from training examples, at 0.03, for 3,000 steps
of 32 sentences; data and labels are those of sst2_tiny.py.

Score reached: not measured. Written for one accelerator of 16 GB.
"""

import dataclasses
from pathlib import Path

from prefix_jax.config import BackboneConfig
from prefix_jax.recipe import load_recipe

_tiny = load_recipe(Path(__file__).with_name("sst2_tiny.py"))
config = dataclasses.replace(
    _tiny,
    backbone=BackboneConfig(name="gpt2-medium", dtype="bfloat16"),
    train=dataclasses.replace(
        _tiny.train, steps=3_000, eval_every=500, checkpoint_every=500
    ),
)
