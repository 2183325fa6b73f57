"""Multi30k on GPT-2 medium. The paper translates nothing: the settings are ours.

    prefix-jax train configs/multi30k_gpt2_medium.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

The paper's for WebNLG (MLP of width 512, AdamW at 5e-5, 5 beams), with prefix length 20
and 10 epochs of 29,000 pairs at batch 10. Data, and how to name another pair of
languages, as in multi30k_tiny.py. GPT-2 has read little but English.

Score reached: not measured. Written for one accelerator of 16 GB.
"""

import dataclasses
from pathlib import Path

from prefix_jax.config import ScoreConfig
from prefix_jax.recipe import load_recipe

_webnlg = load_recipe(Path(__file__).with_name("webnlg_gpt2_medium.py"))
_tiny = load_recipe(Path(__file__).with_name("multi30k_tiny.py"))
config = dataclasses.replace(
    _webnlg,
    prefix=dataclasses.replace(_webnlg.prefix, length=20),
    data=_tiny.data,
    train=dataclasses.replace(_webnlg.train, steps=29_000, batch_size=10),
    score=ScoreConfig(),
)
