"""E2E NLG (restaurants) on the bundled backbone; runs on two CPU cores.

    prefix-jax train configs/e2e_tiny.py --data.path FOLDER --workdir runs/e2e_tiny
    prefix-jax compare configs/e2e_tiny.py --data.path FOLDER \\
        --methods none prefix top2 full --workdir runs/e2e_compared

FOLDER holds the official files: trainset.csv, devset.csv, testset_w_refs.csv, each also
as .csv.gz.
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
