"""DART on the bundled backbone; two CPU cores.

    prefix-jax train configs/dart_tiny.py --data.path FOLDER --workdir runs/dart_tiny
    prefix-jax evaluate --workdir runs/dart_tiny

FOLDER holds dart-v1.1.1-full-train.json, -dev.json and -test.json, each also as
.json.gz. With the dev file alone, take slices of it: --data.train "validation[:2000]"
--data.validation "validation[2000:2300]" --data.test "validation[2300:]".

Score reached: not measured.
"""

import dataclasses
from pathlib import Path

from prefix_jax.recipe import load_recipe

_webnlg = load_recipe(Path(__file__).with_name("webnlg_tiny.py"))
config = dataclasses.replace(
    _webnlg, data=dataclasses.replace(_webnlg.data, source="dart")
)
