"""WebNLG 2017 on the bundled backbone; two CPU cores.

    prefix-jax train configs/webnlg_tiny.py --data.path FOLDER --workdir runs/webnlg
    prefix-jax evaluate --workdir runs/webnlg

FOLDER holds the challenge's train, dev and test, unpacked or in one .tar.gz. Scores are
given for all categories, for those seen in training and for the unseen ones.

Reached on two CPU cores (benchmarks/results/webnlg_tiny), which other work shared, in
400 steps; BLEU on the test set's categories, all of them, seen in training, unseen:

                        trained   test loss    all   seen   unseen
    backbone alone            0       3.693    1.2    1.4      1.0
    prefix-tuning        81,920       2.217   12.2   16.0      6.9
    embedding only       10,240       2.609    5.1    5.9      4.1
    top-2 layers      1,580,032       1.683   24.5   34.1     11.3
    full fine-tuning  4,339,200       1.605   28.4   39.9     13.2
"""

from prefix_jax.config import (
    Config,
    DataConfig,
    DecodeConfig,
    OptimConfig,
    PrefixConfig,
    ScoreConfig,
    TrainConfig,
)

config = Config(
    prefix=PrefixConfig(length=40),
    data=DataConfig(source="webnlg", max_length=256, pack=512),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(
        steps=400,
        batch_size=6,
        eval_every=100,
        eval_batches=50,
        checkpoint_every=100,
    ),
    decode=DecodeConfig(max_new_tokens=100, batch_size=64),
    score=ScoreConfig(metrics=("bleu", "chrf", "ter")),
)
