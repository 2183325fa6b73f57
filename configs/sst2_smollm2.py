"""SST-2 (is a film review good or bad?) on SmolLM2-135M-Instruct.

    prefix-jax train configs/sst2_smollm2.py --data.path FOLDER --workdir runs/sst2
    prefix-jax evaluate --workdir runs/sst2

Data and labels are those of sst2_tiny.py. Reached on an H200
(benchmarks/results/smollm2_sst2): 94.1 % of the held-out rows, where the backbone alone
gets 61.2 %. Written for one accelerator; for two CPU cores give `--data.limit 100
--data.validation-limit 30 --train.steps 80 --train.batch-size 4
--train.eval-every 20`.
"""

import dataclasses
from pathlib import Path

from prefix_jax.config import BackboneConfig, OptimConfig, TrainConfig
from prefix_jax.recipe import load_recipe

_tiny = load_recipe(Path(__file__).with_name("sst2_tiny.py"))
config = dataclasses.replace(
    _tiny,
    backbone=BackboneConfig(name="smollm2-135m", dtype="bfloat16"),
    data=dataclasses.replace(_tiny.data, separator="\n", pack=128),
    optim=OptimConfig(learning_rate=0.05),
    train=TrainConfig(
        steps=1_500, batch_size=16, eval_every=250, checkpoint_every=1_500
    ),
)
