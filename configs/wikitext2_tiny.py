"""Plain language modelling: WikiText-2 on the bundled backbone; two CPU cores.

    prefix-jax train configs/wikitext2_tiny.py --data.path FOLDER --workdir runs/wiki
    prefix-jax evaluate --workdir runs/wiki

FOLDER holds the raw release: wiki.train.raw, wiki.valid.raw and wiki.test.raw, each
also as .raw.gz. Every line is a document; rows are cut from all of them. `tiny` was
pre-trained on prose that was taken from the training file and cleaned: what there is to
learn are WikiText's headings and its spacing.

Reached on two CPU cores (benchmarks/results/wikitext2_tiny), which other work shared,
in 300 steps:

                        trained   test loss   perplexity of a token
    backbone alone            0       4.574                    96.9
    prefix-tuning        81,920       3.611                    37.0
    embedding only       10,240       3.805                    44.9
    top-2 layers      1,580,032       3.497                    33.0
    full fine-tuning  4,339,200       3.457                    31.7
"""

from prefix_jax.config import Config, DataConfig, OptimConfig, PrefixConfig, TrainConfig

config = Config(
    prefix=PrefixConfig(length=40),
    data=DataConfig(
        task="language_modelling",
        train="wiki.train",
        validation="wiki.valid",
        test="wiki.test",
        max_length=256,
    ),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(
        steps=300, batch_size=12, eval_every=75, eval_batches=25, checkpoint_every=75
    ),
)
