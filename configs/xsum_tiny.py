"""XSum (one-sentence summaries of news) on the bundled backbone; two CPU cores.

    prefix-jax train configs/xsum_tiny.py --data.path FOLDER --workdir runs/xsum_tiny
    prefix-jax evaluate --workdir runs/xsum_tiny

FOLDER holds train.jsonl, validation.jsonl and test.jsonl with `document` and `summary`,
each also as .jsonl.gz. Documents are cut to what `tiny`'s 512 positions leave them. To
take all three from one file, NAME.jsonl: --data.train "NAME[:800]" --data.validation
"NAME[800:900]" --data.test "NAME[900:]".

Reached with such slices of 1,000 documents of XSum's validation set on two CPU cores
(benchmarks/results/xsum_tiny), which other work shared, in 300 steps:

                        trained   test loss   ROUGE-1   ROUGE-2   ROUGE-L
    backbone alone            0       4.402      12.2       1.3      10.6
    prefix-tuning        40,960       3.663      17.4       2.0      13.8
    embedding only        5,120       3.753      14.6       1.3      12.2
    top-2 layers      1,580,032       3.549      18.6       3.0      14.6
    full fine-tuning  4,339,200       3.580      16.3       2.4      12.7
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
    prefix=PrefixConfig(length=20),
    data=DataConfig(
        task="summarization", source="xsum", max_length=384, max_target_length=60
    ),
    optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(
        steps=300, batch_size=8, eval_every=75, eval_batches=12, checkpoint_every=75
    ),
    decode=DecodeConfig(max_new_tokens=60, no_repeat_ngram=3),
)
