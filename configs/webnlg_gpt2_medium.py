"""WebNLG 2017 on GPT-2 medium with the paper's settings (Li & Liang 2021).

    prefix-jax train configs/webnlg_gpt2_medium.py --data.path FOLDER --workdir DIR
    prefix-jax evaluate --workdir DIR

Prefix length 5, the MLP of width 512, AdamW at 5e-5 with linear decay and no warm-up,
5 epochs of 18,025 texts at batch 5, gradients clipped at 1, seed 101; 5 beams, GPT-2's
two newline tokens barred. The paper's length of rows is not stated: 256 tokens here.
METEOR needs Java and the extra `metrics`: --score.metrics bleu ter meteor.

Score reached: not measured; the paper (ACL) reports BLEU 62.9 / 45.3 / 55.0 on seen,
unseen and all categories, by the challenge's script, which lowers the case. Written for
one accelerator of 16 GB.
"""

from prefix_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    DecodeConfig,
    OptimConfig,
    PrefixConfig,
    ScoreConfig,
    TrainConfig,
)

config = Config(
    backbone=BackboneConfig(name="gpt2-medium", dtype="bfloat16"),
    prefix=PrefixConfig(kind="mlp", length=5, hidden=512, init="random"),
    data=DataConfig(source="webnlg", max_length=256),
    optim=OptimConfig(learning_rate=5e-5, schedule="linear"),
    train=TrainConfig(
        steps=18_025,  # 5 epochs of 18,025 texts
        batch_size=5,
        normalise="sentence",
        seed=101,
        eval_every=2_000,
        checkpoint_every=1_000,
    ),
    decode=DecodeConfig(
        method="beam", beams=5, max_new_tokens=100, barred_tokens=(198, 628)
    ),
    score=ScoreConfig(metrics=("bleu", "chrf", "ter")),
)
