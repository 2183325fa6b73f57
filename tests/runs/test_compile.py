"""Programs compiled for TPU slices that are not there (needs libtpu)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from families import CONFIGS as CONFIGS_OF_FAMILIES

from prefix_jax.runs.collectives import collectives

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
CONFIGS = Path(__file__).parents[2] / "configs"


def own_process(*arguments, text=None):
    """Of Python: libtpu ends at XLA's flags for CPUs."""
    tests_own = "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"
    return subprocess.run(
        [sys.executable, *arguments],
        env={k: v for k, v in os.environ.items() if k not in tests_own},
        input=text,
        capture_output=True,
        text=True,
        timeout=300,
    )


def compile_(*options, recipe="two_by_two", status=0, out=None):
    """The command, what it said and what it wrote."""
    command = ["-m", "prefix_jax", "compile", str(CONFIGS / f"{recipe}.py"), *options]
    if out is not None:
        command += ["--out", str(out)]
    ended = own_process(*command)
    assert ended.returncode == status, ended.stderr
    found = None if out is None else json.loads(out.read_text())
    return ended.stdout + ended.stderr, found


SMALL = ["--train.batch-size", "8", "--data.max-length", "32"]
TRAIN = [*SMALL, "--programs", "train"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "dtype", "slices"),
    [
        ("padded", "float32", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2"]),
        ("padded", "bfloat16", ["v5e:2x2"]),
        ("packed", "bfloat16", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]),
    ],
)
def test_devices_send_no_more_than_the_gradient(tmp_path, rows, dtype, slices):
    """Split by data: no all-gather; the prefix's gradient once, in f32.

    In bf16 it is for kernels of our own that each device has its rows.
    """
    pack = []
    if rows == "packed":
        pack = ["--data.pack", "128", "--train.normalise", "sentence"]
    options = [*TRAIN, *pack, "--backbone.dtype", dtype, "--topology", *slices]
    printed, found = compile_(*options, out=tmp_path / "out.json")
    assert [one["topology"] for one in found] == slices
    for train in found:
        assert f"train on {train['topology']} (4 devices): fits" in printed
        kinds = {one["kind"] for one in train["collectives"]}
        assert kinds == {"all-reduce"}, train["topology"]
        assert not any("bf16" in one["array"] for one in train["collectives"])
        sent = sum(one["bytes"] * one["times"] for one in train["collectives"])
        trained = train["held"]["optimizer"] / 2  # Adam keeps two numbers for each
        assert trained <= sent <= 2 * trained, train["topology"]


@needs_libtpu
@pytest.mark.slow
def test_fused_attention_keeps_no_scores(tmp_path):
    """Of a long row they are most of what a step needs for a while."""
    options = [*TRAIN, "--data.pack", "512", "--train.batch-size", "16"]
    options += ["--backbone.dtype", "bfloat16", "--topology", "v5e:2x2"]
    [fused], [plain] = (
        compile_(*options, "--backbone.fused", fused, out=tmp_path / "out.json")[1]
        for fused in ("True", "False")
    )
    assert fused["temporary"] < 0.5 * plain["temporary"]


@needs_libtpu
@pytest.mark.slow
def test_a_parted_backbone_is_held_in_parts(tmp_path):
    mesh = ["--mesh.fsdp", "2", "--mesh.tensor", "2"]
    options = [*TRAIN, "--topology", "v5e:2x2"]
    _, [whole] = compile_(*options, out=tmp_path / "whole.json")
    _, [parted] = compile_(*options, *mesh, out=tmp_path / "parted.json")
    assert parted["held"]["backbone"] < 0.5 * whole["held"]["backbone"]
    assert parted["held"]["prefix"] == whole["held"]["prefix"]
    # The state is donated: results take no room of their own.
    assert whole["temporary"] < whole["held"]["backbone"]
    assert "all-gather" in {one["kind"] for one in parted["collectives"]}


@needs_libtpu
@pytest.mark.slow
def test_a_llama_compiles_for_a_slice(tmp_path, tokenizer):
    """Both programs, whole and with heads and MLPs dealt out."""
    config = CONFIGS_OF_FAMILIES["llama"].fields()
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(tmp_path)
    options = [*SMALL, "--decode.max-new-tokens", "4", "--topology", "v5e:2x2"]
    options += ["--backbone.name", str(tmp_path)]
    out = tmp_path / "out.json"
    _, [train, decode] = compile_(*options, out=out)
    assert {one["kind"] for one in train["collectives"]} == {"all-reduce"}
    _, [parted, writing] = compile_(*options, "--mesh.tensor", "2", out=out)
    assert "all-reduce" in {one["kind"] for one in writing["collectives"]}
    assert parted["held"]["backbone"] < train["held"]["backbone"]
    assert decode["held"]["backbone"] == train["held"]["backbone"]


@needs_libtpu
@pytest.mark.slow
def test_the_command_prints_and_stores_both_programs(tmp_path):
    short = ["--decode.max-new-tokens", "4", "--data.max-length", "16"]
    printed, [train, decode] = compile_(
        *short, "--topology", "v5e:2x2", out=tmp_path / "out.json"
    )
    assert "train on v5e:2x2 (4 devices): fits" in printed
    assert "decode on v5e:2x2 (4 devices): fits" in printed
    assert "all-reduce" in printed and "16 GB a chip" in printed
    assert "Error" not in printed and "WARNING" not in printed
    assert train["held"]["backbone"] == decode["held"]["backbone"] > 16_000_000
    assert not decode["collectives"]  # each device writes after its own prompts


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_ends_with_status_1():
    """GPT-2 medium without remat, in a batch for which the chips are too small."""
    large = ["--train.batch-size", "256", "--data.max-length", "1000"]
    printed, _ = compile_(
        *(*large, "--programs", "train", "--topology", "v5e:2x2"),
        recipe="e2e_gpt2_medium",
        status=1,
    )
    assert "does NOT fit" in printed and "--backbone.remat" in printed
    assert "256 rows of 1000 tokens" in printed


REFUSED = [
    (["v5e:0x2"], 'topology is "v5e:0x2"; expected a chip and'),
    (["v5e:2x2", "v5"], 'topology is "v5"; expected a chip and'),
    ([], "topology is empty; name a slice"),
    (["v5e:2x2x2"], 'topology is "v5e:2x2x2"; expected a chip and'),
    (["v9:2x2"], 'topology "v9:2x2" is not known'),
    (["v5e:2x4", "v5e:2x2", "--mesh.fsdp", "8"], "v5e:2x2: mesh.data None, mesh.fsdp"),
    (["v5e:2x2", "--mesh.tensor", "3"], "tiny's 4 heads of keys"),
    (["v5e:2x2", "--data.max-length", "600"], "exceeds tiny's 512"),
    (["v5e:2x2", "--mesh.parallel", "pmap"], "--mesh.parallel jit"),
    (["v5e:2x2", "--programs"], "programs is empty"),
    (["v5e:2x2", "--out", "nowhere/x.json"], "nowhere is no folder"),
]
ALL_OF_THEM = """
import contextlib, io, json, sys
from prefix_jax.cli import main
found = []
for options in json.load(sys.stdin):
    said, status = io.StringIO(), None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(["compile", *options])
        except SystemExit as stop:
            status = stop.code
    found.append((status, said.getvalue()))
print(json.dumps(found))
"""


@needs_libtpu
def test_what_cannot_be_is_refused_before_compiling():
    """As `train` would refuse it, and what ends libtpu with a signal."""
    recipe = str(CONFIGS / "quickstart.py")
    given = [[recipe, "--topology", *options] for options, _ in REFUSED]
    ended = own_process("-c", ALL_OF_THEM, text=json.dumps(given))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    for (status, said), (options, message) in zip(found, REFUSED, strict=True):
        assert (status, message in said) == (2, True), (options, said)
        assert "Traceback" not in said and "compiled in" not in said


HLO = """\
HloModule jit_step

%cond (arg: (s32[], f32[2,4])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(12)
  %arg = (s32[], f32[2,4]) parameter(0)
  %count = s32[] get-tuple-element(%arg), index=0
  ROOT %lt = pred[] compare(%count, %constant.7), direction=LT
}

%body (arg.1: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %arg.1 = (s32[], f32[2,4]) parameter(0)
  %sum = (bf16[2,4]{1,0}, f32[3]{0}) all-reduce(%a, %b), to_apply=%add
}

%open (arg.2: (s32[])) -> pred[] {
  ROOT %going = pred[] and(%x, %y)
}

%rest (arg.3: (s32[])) -> (s32[]) {
  %gathered = f32[8,4]{1,0} all-gather(%p), dimensions={0}
}

ENTRY %main (p: f32[2,4]) -> f32[2,4] {
  %loop = (s32[], f32[2,4]) while(%t), condition=%cond, body=%body
  %open.loop = (s32[]) while(%t), condition=%open, body=%rest
  %started = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%started)
  %sums = (f32[1000]{0}, bf16[8]{0}) all-reduce-start(%a, %b), to_apply=%add
  %sent = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%a)
}
"""


def test_collectives_are_counted_with_their_loops():
    found = {(one.kind, one.array): (one.bytes, one.times) for one in collectives(HLO)}
    assert found == {
        ("all-reduce", "bf16[2,4] f32[3]"): (16 + 12, 12),
        ("all-gather", "f32[8,4]"): (128, 2),
        ("all-reduce", "f32[1000] bf16[8]"): (4016, 1),
        ("collective-permute", "f32[64]"): (256, 1),
    }
