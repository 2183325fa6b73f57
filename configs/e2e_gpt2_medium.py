"""E2E NLG on GPT-2 medium with the paper's settings (Li & Liang 2021).

    prefix-jax train configs/e2e_gpt2_medium.py --data.path FOLDER --workdir DIR

Prefix length 5, the MLP of width 512, AdamW at 8e-5 with linear decay and no warm-up,
5 epochs of 42,061 examples at batch 10, gradients clipped at 1, seed 101. Written with
5 beams, a score divided by its length (transformers' default, and the paper's "no
length penalty"), GPT-2's two newline tokens barred. The paper's least length of 5
counted the prompt, so it is left out.

The paper's low-data protocol, but for the 400 steps of size 500 (a command of its own,
with another DIR); how long it waits before it stops early is ours:

    prefix-jax sweep configs/e2e_gpt2_medium.py --data.path FOLDER --workdir DIR \\
        --sizes 50 100 200 --subsamples 5 --seeds 101 102 \\
        --grid train.method prefix full --grid optim.learning_rate 1e-5 5e-5 8e-5 \\
        --prefix.length 6 --prefix.init words --prefix.words table-to-text: \\
        --optim.warmup-steps 100 --train.steps 200 \\
        --train.eval-every 20 --train.patience 5

Score reached: not measured; the paper's arXiv v1 reports test BLEU 69.7 with beam 5.
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
    backbone=BackboneConfig(name="gpt2-medium", dtype="bfloat16"),
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
