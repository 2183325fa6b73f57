"""What each of the two processes of test_run_processes.py does; not a test.

    python one_of_two.py PROCESS COORDINATOR FOLDER

FOLDER has recipe.py; a run crashes in it, goes on, is scored, and another finds its
folder taken. What is found on the way is in FOLDER/found_PROCESS.json.
"""

import itertools
import json
import sys
from pathlib import Path

import jax

import prefix_jax.runs.train as train_module
from prefix_jax.cli import main
from prefix_jax.distributed import ClusterConfig, check_alike, joined
from prefix_jax.errors import InputError
from prefix_jax.recipe import load_recipe
from prefix_jax.runs.train import train

process, coordinator, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
recipe, workdir = folder / "recipe.py", folder / "run"
cluster = ["--cluster.coordinator", coordinator, "--cluster.processes", "2"]
cluster += ["--cluster.process", str(process), "--cluster.timeout", "60"]


class Crash(Exception):
    pass


def run(*arguments):
    try:
        main([*map(str, arguments), *cluster])
    except SystemExit as stop:
        return stop.code


found: dict[str, object] = {}
with joined(ClusterConfig(coordinator, 2, process, timeout=60), stops=True):
    found["processes"] = [jax.process_index(), jax.process_count()]
    put_batch, calls = train_module.put_batch, itertools.count(1)

    def crash(batch, mesh):
        if next(calls) == 6:
            raise Crash
        return put_batch(batch, mesh)

    train_module.put_batch = crash
    try:
        train(load_recipe(recipe), workdir)
    except Crash:
        train_module.put_batch = put_batch
    found["going on"] = run("train", recipe, "--workdir", workdir)
    found["scored"] = run("evaluate", "--workdir", workdir)
    whole = ("--train.method", "full", "--mesh.fsdp", 2, "--train.steps", 2)
    whole += ("--train.samples", 0)
    found["parted"] = run("train", recipe, "--workdir", folder / "parted", *whole)
    try:
        check_alike({"train.seed": process, "train.steps": 7})
    except InputError as error:
        found["unlike"] = str(error)
(folder / f"found_{process}.json").write_text(json.dumps(found))
print("now one fails", file=sys.stderr, flush=True)
main(["train", str(recipe), "--workdir", str(folder / "taken"), *cluster])
