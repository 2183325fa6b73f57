"""SST-2 (is a film review good or bad?) on the bundled backbone; two CPU cores.

    prefix-jax train configs/sst2_tiny.py --data.path FOLDER --workdir runs/sst2_tiny
    prefix-jax evaluate --workdir runs/sst2_tiny

FOLDER holds GLUE's train.tsv and dev.tsv, each also as .tsv.gz. GLUE's test labels are
not public: dev is the test split, and the first 1,000 rows of train choose the prefix.

Reached on two CPU cores (benchmarks/results/sst2_tiny), which other work shared, in 600
steps; the loss is that of each of a label's two tokens, and tossing a coin for the
label has 0.347:

                        trained   test loss   accuracy   macro F1
    backbone alone            0       8.218      0.555      0.357
    prefix-tuning        40,960       0.333      0.601      0.545
    embedding only        5,120       0.322      0.633      0.606
    top-2 layers      1,580,032       0.213      0.799      0.795
    full fine-tuning  4,339,200       0.160      0.868      0.866

sst2_gpt2_medium.py is for a larger model.
"""

from prefix_jax.config import (
    Config,
    DataConfig,
    OptimConfig,
    PrefixConfig,
    TrainConfig,
)

config = Config(
    prefix=PrefixConfig(length=20),
    data=DataConfig(
        task="classification",
        source="sst2",
        train="train[1000:]",
        validation="train[:1000]",
        test="dev",
        labels=("0=negative", "1=positive"),
        max_length=80,
        pack=256,
    ),
    optim=OptimConfig(learning_rate=0.03),
    train=TrainConfig(steps=600, batch_size=12, eval_every=150, checkpoint_every=150),
)
