"""E2E NLG (restaurants) on the bundled backbone; runs on two CPU cores.

    prefix-jax train configs/e2e_tiny.py --data.path FOLDER --workdir runs/e2e_tiny
    prefix-jax compare configs/e2e_tiny.py --data.path FOLDER \\
        --methods none prefix top2 full --workdir runs/e2e_compared

FOLDER holds the official files: trainset.csv, devset.csv, testset_w_refs.csv, each also
as .csv.gz. Reached on two CPU cores (benchmarks/results/e2e_tiny), which other work
shared, after 1000 steps of 32, best of validation:

                     trained      validation loss   test loss   test BLEU   minutes
    backbone alone           0                          4.067         1.2
    embedding only      10,240    2.045                 2.049        12.3        37
    prefix-tuning       81,920    1.324                 1.323        44.3        18
    top-2 layers     1,580,032    1.014                 1.009        63.8        19
    full fine-tuning 4,339,200    0.884                 0.877        65.9        13
"""

from prefix_jax.config import (
    Config,
    DataConfig,
    DecodeConfig,
    OptimConfig,
    PrefixConfig,
    TrainConfig,
)

config = Config(
    prefix=PrefixConfig(length=40, init="examples"),
    data=DataConfig(source="e2e", max_length=192),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(
        steps=1000,
        batch_size=32,
        eval_every=250,
        eval_batches=40,
        checkpoint_every=250,
    ),
    decode=DecodeConfig(max_new_tokens=100, batch_size=64),
)
