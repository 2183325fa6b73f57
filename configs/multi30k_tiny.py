"""Multi30k (captions of pictures, translated) on the bundled backbone; two CPU cores.

    prefix-jax train configs/multi30k_tiny.py --data.path FOLDER --workdir runs/multi30k
    prefix-jax evaluate --workdir runs/multi30k

FOLDER holds train.en, val.en, test_2016_flickr.en, and the same in de and fr, each also
as .gz. It translates from English into German; for another pair say so:
--data.source-column de --data.target-column en. `tiny` has read English only, so this
shows that the road works, not that it leads to a translator.

Score reached: not measured.
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
    prefix=PrefixConfig(length=40),
    data=DataConfig(
        task="translation",
        source="multi30k",
        source_column="en",
        target_column="de",
        max_length=160,
        pack=512,
    ),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(
        steps=600,
        batch_size=6,
        eval_every=150,
        eval_batches=50,
        checkpoint_every=150,
    ),
    decode=DecodeConfig(max_new_tokens=80, batch_size=64),
)
