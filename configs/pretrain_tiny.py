"""Pre-train the bundled backbone `tiny` from scratch (split "full", packed text).

    python -m prefix_jax.data.builders.corpus --text FOLDER --out corpus
    prefix-jax train configs/pretrain_tiny.py --data.path corpus --workdir runs/tiny

FOLDER holds enwik8, WikiText-2 and 18 Gutenberg books (see `corpus --help`). Took 82
minutes on two CPU cores that had other work too, and reached a validation loss of 3.756
nats per token (1.561 bits per byte). What is bundled is runs/tiny/best, read with
`load_backbone(..., dtype="bfloat16")` and written with `save_backbone`; its log and
curve are in prefix_jax/model/tiny.
"""

from prefix_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DecodeConfig,
    OptimConfig,
    TrainConfig,
)

config = Config(
    backbone=BackboneConfig(name="tiny", weights="random"),
    data=DataConfig(
        task="language_modelling",
        train="train.txt",
        validation="validation.txt",
        test="wikitext2_test.txt",
        max_length=512,
    ),
    optim=OptimConfig(
        name="muon",
        learning_rate=4e-3,
        schedule="linear",
        warmup_steps=100,
        weight_decay=0.1,
        b2=0.95,
    ),
    train=TrainConfig(
        method="full",
        steps=4000,
        batch_size=8,
        eval_every=200,
        eval_batches=16,
        checkpoint_every=200,
    ),
    decode=DecodeConfig(max_new_tokens=48),
)
