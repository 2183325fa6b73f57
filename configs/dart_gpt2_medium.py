"""DART on GPT-2 medium with the paper's settings (Li & Liang 2021).

    prefix-jax train configs/dart_gpt2_medium.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

As WebNLG's recipe, but for prefix length 10 and 10 epochs of DART's 62,659 texts (by
its authors' count of v1.1.1; set train.steps to 2 x the texts of your file).

Score reached: not measured; the paper (ACL) reports BLEU 46.4. Written for one
accelerator of 16 GB.
"""

import dataclasses
from pathlib import Path

from prefix_jax.recipe import load_recipe

_webnlg = load_recipe(Path(__file__).with_name("webnlg_gpt2_medium.py"))
config = dataclasses.replace(
    _webnlg,
    prefix=dataclasses.replace(_webnlg.prefix, length=10),
    data=dataclasses.replace(_webnlg.data, source="dart"),
    train=dataclasses.replace(_webnlg.train, steps=125_318),  # 10 epochs
)
