"""XSum on GPT-2 medium: the paper's data, on a backbone that it did not use for them.

    prefix-jax train configs/xsum_gpt2_medium.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

The paper summarizes with BART large: prefix length 100 (its best is 200), the MLP of
width 800, AdamW at 5e-5, 30 epochs at batch 14. These are kept, on GPT-2: the source is
cut to 512 tokens and the target to 60, as the paper's code does there. Of XSum's
204,045 training documents 30 epochs are 437,239 steps.

Score reached: not measured; the paper's ROUGE-1/2/L of 43.80 / 20.93 / 36.05 are
another model's, BART's. Written for one accelerator of 40 GB; with less,
--train.accumulate 2 or --backbone.remat True.
"""

from prefix_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DecodeConfig,
    OptimConfig,
    PrefixConfig,
    TrainConfig,
)

config = Config(
    backbone=BackboneConfig(name="gpt2-medium", dtype="bfloat16"),
    prefix=PrefixConfig(kind="mlp", length=100, hidden=800, init="random"),
    data=DataConfig(
        task="summarization",
        source="xsum",
        max_length=512 + 60 + 2,  # source, target, separator and end
        max_target_length=60,
    ),
    optim=OptimConfig(learning_rate=5e-5, schedule="linear"),
    train=TrainConfig(
        steps=437_239,  # 30 epochs of 204,045 documents
        batch_size=14,
        normalise="sentence",
        seed=101,
        eval_every=10_000,
        eval_batches=100,
        checkpoint_every=2_000,
    ),
    decode=DecodeConfig(
        method="beam", beams=5, max_new_tokens=60, barred_tokens=(198, 628)
    ),
)
