"""The quick start: describe invented places, from tables, with the bundled backbone.

prefix-jax compare configs/quickstart.py --workdir runs/quickstart
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
    data=DataConfig(source="quickstart", max_length=128, buckets=(96, 112)),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(
        steps=300, batch_size=16, eval_every=100, eval_batches=16, samples=1
    ),
    decode=DecodeConfig(max_new_tokens=64),
)
