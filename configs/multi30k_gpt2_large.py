"""Multi30k on GPT-2 large; all else as in multi30k_gpt2_medium.py.

    prefix-jax train configs/multi30k_gpt2_large.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

Score reached: not measured; the paper has no translation.
"""

import dataclasses
from pathlib import Path

from prefix_jax.recipe import load_recipe

_medium = load_recipe(Path(__file__).with_name("multi30k_gpt2_medium.py"))
config = dataclasses.replace(
    _medium, backbone=dataclasses.replace(_medium.backbone, name="gpt2-large")
)
