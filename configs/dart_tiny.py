"""DART on the bundled backbone; two CPU cores.

    prefix-jax train configs/dart_tiny.py --data.path FOLDER --workdir runs/dart_tiny
    prefix-jax evaluate --workdir runs/dart_tiny

FOLDER holds dart-v1.1.1-full-train.json, -dev.json and -test.json, each also as
.json.gz. With the dev file alone, take slices of it: --data.train "validation[:2000]"
--data.validation "validation[2000:2300]" --data.test "validation[2300:]".

Reached with these slices on two shared CPU cores (benchmarks/results/dart_tiny) in 400
steps:

                        trained   test loss   BLEU   chrF    TER
    backbone alone            0       4.001    2.0   13.3  222.1
    prefix-tuning        81,920       1.728   28.4   44.0   67.7
    embedding only       10,240       2.428    8.0   23.7  165.6
    top-2 layers      1,580,032       1.338   32.2   49.7   63.2
    full fine-tuning  4,339,200       1.238   33.0   51.0   66.7
"""

import dataclasses
from pathlib import Path

from prefix_jax.recipe import load_recipe

_webnlg = load_recipe(Path(__file__).with_name("webnlg_tiny.py"))
config = dataclasses.replace(
    _webnlg, data=dataclasses.replace(_webnlg.data, source="dart")
)
