"""SST-2 on GPT-2 large; all else as in sst2_gpt2_medium.py.

    prefix-jax train configs/sst2_gpt2_large.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

Score reached: not measured; the paper has no classification.
"""

import dataclasses
from pathlib import Path

from prefix_jax.recipe import load_recipe

_medium = load_recipe(Path(__file__).with_name("sst2_gpt2_medium.py"))
config = dataclasses.replace(
    _medium, backbone=dataclasses.replace(_medium.backbone, name="gpt2-large")
)
