"""The smallest example: two classes, two examples of each; runs in seconds.

    prefix-jax train configs/two_by_two.py --workdir runs/two_by_two
    prefix-jax evaluate --workdir runs/two_by_two
    prefix-jax generate --prefix runs/two_by_two "I love this town"

The data are the three files beside this one, in two_by_two/. Hardware: one CPU core.
"""

from pathlib import Path

from prefix_jax.config import Config, DataConfig, PrefixConfig, TrainConfig

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
    train=TrainConfig(steps=100, batch_size=4, eval_every=25, samples=4),
)
