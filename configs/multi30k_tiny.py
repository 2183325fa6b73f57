"""Multi30k (captions of pictures, translated) on the bundled backbone; two CPU cores.

    prefix-jax train configs/multi30k_tiny.py --data.path FOLDER --workdir runs/multi30k
    prefix-jax evaluate --workdir runs/multi30k

FOLDER holds train.en, val.en, test_2016_flickr.en, and the same in de and fr, each also
as .gz. It translates from English into German; for another pair say so:
--data.source-column de --data.target-column en. `tiny` has read English only, so this
shows that the road works, not that it leads to a translator.

Reached on two CPU cores (benchmarks/results/multi30k_tiny), which other work shared, in
600 steps, on the 1,000 sentences of test_2016_flickr:

                        trained   test loss   BLEU   chrF    TER
    backbone alone            0       6.417    0.0    8.2  335.0
    prefix-tuning        81,920       2.528    1.8   18.9  137.7
    embedding only       10,240       3.628    2.0   15.4   89.7
    top-2 layers      1,580,032       1.585   14.8   37.9   72.2
    full fine-tuning  4,339,200       1.204   22.0   47.4   63.8
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
