"""Multi30k on SmolLM2-135M-Instruct, which has read little but English.

    prefix-jax train configs/multi30k_smollm2.py --data.path FOLDER --workdir runs/m30k
    prefix-jax evaluate --workdir runs/m30k

Data are those of multi30k_tiny.py, from English into German. Written for one
accelerator; neither its time nor its score there has been measured yet. Of a twentieth
of it on two CPU cores, --train.steps 300 --train.batch-size 4 (307,200 tokens), came a
dev loss of 2.075 (4.079 before), and on test_2016_flickr 1.862 nats, 13.5 BLEU, 40.1
chrF and 76.7 TER, greedy (benchmarks/results/multi30k_smollm2).
"""

import dataclasses
from pathlib import Path

from prefix_jax.config import BackboneConfig, OptimConfig, TrainConfig
from prefix_jax.recipe import load_recipe

_tiny = load_recipe(Path(__file__).with_name("multi30k_tiny.py"))
config = dataclasses.replace(
    _tiny,
    backbone=BackboneConfig(name="smollm2-135m", dtype="bfloat16"),
    data=dataclasses.replace(_tiny.data, separator="\n", pack=256),
    optim=OptimConfig(learning_rate=0.05),
    train=TrainConfig(
        steps=2_000, batch_size=12, eval_every=500, checkpoint_every=2_000
    ),
)
