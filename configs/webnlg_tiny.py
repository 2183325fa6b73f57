"""WebNLG 2017 on the bundled backbone; two CPU cores.

    prefix-jax train configs/webnlg_tiny.py --data.path FOLDER --workdir runs/webnlg
    prefix-jax evaluate --workdir runs/webnlg

FOLDER holds the challenge's train, dev and test, unpacked or in one .tar.gz. Scores are
given for all categories, for those seen in training and for the unseen ones.

Score reached: not measured.
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
