"""WebNLG 2017 on GPT-2 large; all else as in webnlg_gpt2_medium.py.

    prefix-jax train configs/webnlg_gpt2_large.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

Score reached: not measured; the paper (ACL) reports BLEU 63.4 / 47.7 / 56.3 on seen,
unseen and all categories.
"""

import dataclasses
from pathlib import Path

from prefix_jax.recipe import load_recipe

_medium = load_recipe(Path(__file__).with_name("webnlg_gpt2_medium.py"))
config = dataclasses.replace(
    _medium, backbone=dataclasses.replace(_medium.backbone, name="gpt2-large")
)
