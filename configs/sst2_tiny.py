"""SST-2 (is a film review good or bad?) on the bundled backbone; two CPU cores.

    prefix-jax train configs/sst2_tiny.py --data.path FOLDER --workdir runs/sst2_tiny
    prefix-jax evaluate --workdir runs/sst2_tiny

FOLDER holds GLUE's train.tsv and dev.tsv, each also as .tsv.gz. GLUE's test labels are
not public: dev is the test split, and the first 1,000 rows of train choose the prefix.

Reached after 600 steps on two shared CPU cores: accuracy 0.601 on dev, where "always
positive", which is what the backbone alone says, has 0.555; 0.333 nats for each of a
label's two tokens, where the backbone alone has 8.218 and tossing a coin for the label
0.347. sst2_gpt2_medium.py is for a
larger model.
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
