"""The smallest example: two classes, two examples of each; runs in seconds.

    prefix-jax train configs/two_by_two.py --workdir runs/two_by_two
    prefix-jax evaluate --workdir runs/two_by_two
    prefix-jax generate --prefix runs/two_by_two "I love this town"

The data are the three files in two_by_two/, beside this one. Reached in 100 steps on a
CPU core: all four test sentences right, loss 0.02 (the backbone alone: two, 15.9).
"""

from pathlib import Path

from prefix_jax.config import Config, DataConfig, OptimConfig, PrefixConfig, TrainConfig

config = Config(
    prefix=PrefixConfig(length=4),
    data=DataConfig(
        task="classification",
        path=str(Path(__file__).with_name("two_by_two")),
        source_column="text",
        target_column="label",
        labels=("0=bad", "1=good"),
        max_length=32,
    ),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(steps=100, batch_size=4, eval_every=25, samples=4),
)
