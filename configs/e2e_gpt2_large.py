"""E2E NLG on GPT-2 large with the paper's settings (Li & Liang 2021).

    prefix-jax train configs/e2e_gpt2_large.py --data.path FOLDER --workdir DIR

As `e2e_gpt2_medium.py` beside it, which it reads, but for the backbone.

Score reached: not measured; the paper's arXiv v1 reports test BLEU 70.3 with beam 5.
Written for one accelerator of 16 GB; of several, as many share the batch as divide it.
"""

import dataclasses
from pathlib import Path

from prefix_jax.config import Config
from prefix_jax.recipe import load_recipe

medium: Config = load_recipe(Path(__file__).with_name("e2e_gpt2_medium.py"))
config = dataclasses.replace(
    medium, backbone=dataclasses.replace(medium.backbone, name="gpt2-large")
)
