"""DART on GPT-2 large; all else as in dart_gpt2_medium.py.

    prefix-jax train configs/dart_gpt2_large.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

Score reached: not measured; the paper (ACL) reports BLEU 46.7.
"""

import dataclasses
from pathlib import Path

from prefix_jax.recipe import load_recipe

_medium = load_recipe(Path(__file__).with_name("dart_gpt2_medium.py"))
config = dataclasses.replace(
    _medium, backbone=dataclasses.replace(_medium.backbone, name="gpt2-large")
)
