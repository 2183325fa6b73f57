"""E2E NLG on GPT-2 large with the paper's settings (Li & Liang 2021).

    prefix-jax train configs/e2e_gpt2_large.py --data.path FOLDER --workdir DIR

Prefix length 5, the MLP of width 512, AdamW at 8e-5 with linear decay and no warm-up,
5 epochs of 42,061 examples at batch 10, gradients clipped at 1, seed 101. Written with
5 beams, a score divided by its length (transformers' default, and the paper's "no
length penalty"), GPT-2's two newline tokens barred. The paper's least length of 5
counted the prompt, so it is left out.

Score reached: not measured; the paper's arXiv v1 reports test BLEU 70.3 with beam 5.
Written for one accelerator of 16 GB; of several, as many share the batch as divide it.
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
    backbone=BackboneConfig(name="gpt2-large", dtype="bfloat16"),
    prefix=PrefixConfig(kind="mlp", length=5, hidden=512, init="random"),
    data=DataConfig(source="e2e", max_length=256),
    optim=OptimConfig(learning_rate=8e-5, schedule="linear"),
    train=TrainConfig(
        steps=21_030,  # 5 epochs of 42,061 examples
        batch_size=10,
        normalise="sentence",
        seed=101,
        eval_every=2_000,
        checkpoint_every=1_000,
    ),
    decode=DecodeConfig(
        method="beam", beams=5, max_new_tokens=100, barred_tokens=(198, 628)
    ),
)
