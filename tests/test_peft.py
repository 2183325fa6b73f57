"""Prefixes in PEFT and here: the same logits, the same texts, both ways (law 10)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import grouped_too

from prefix_jax.config import DecodeConfig
from prefix_jax.decoding.generate import generate_sequences
from prefix_jax.model.kv import KV
from prefix_jax.model.prefix import init_prefix
from prefix_jax.model.prefix_kinds import MLPPrefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.storage.artifact import load_prefix, save_prefix

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LENGTH = 6
NEW = 8
# Where layers have windows, transformers counts padding as distance from the prefix.


@dataclasses.dataclass(frozen=True)
class Pair:
    """One prefix, here and in PEFT."""

    kv: KV
    peer: Any
    exact: Any
    """The same PEFT model in f64."""


@pytest.fixture(scope="module", params=["flat", "mlp", "theirs", "theirs projected"])
def pair(request, backbone, model_folder, tmp_path_factory) -> Pair:
    """Our flat or reparametrised prefix in PEFT; PEFT's, plain or projected, here."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prefix")

    def base(dtype=torch.float32):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=dtype
        )
        return model.eval()

    if request.param == "flat":
        config = PrefixConfig(init="random", length=LENGTH)
        save_prefix(
            folder, init_prefix(backbone, config, key=jax.random.key(4)),
            backbone=backbone,
        )  # fmt: skip
    elif request.param == "mlp":
        prefix = MLPPrefix(backbone.config, LENGTH, 16, key=jax.random.key(5))
        prefix = jax.tree.map(lambda x: 2 * x, prefix)
        save_prefix(folder, prefix, backbone=backbone)
    else:
        torch.manual_seed(0)
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=LENGTH,
            prefix_projection=request.param == "theirs projected",
            encoder_hidden_size=16,
        )
        peft.get_peft_model(base(), config).save_pretrained(folder)
    return Pair(
        load_prefix(folder, backbone),
        peft.PeftModel.from_pretrained(base(), folder).eval(),
        peft.PeftModel.from_pretrained(base(torch.float64), folder).double().eval(),
    )


def padded(side: str) -> np.ndarray:
    mask = np.ones((2, 9), bool)
    if side == "left":
        mask[1, :3] = False
    elif side == "right":
        mask[1, -3:] = False
    return mask


@grouped_too
@pytest.mark.parametrize("case", ["no mask", "right", "left", "positions"])
def test_logits_are_the_same(backbone, pair, case):
    """To f32 rounding: the f64 model is the truth, PyTorch's own f32 error against it
    the measure, and ours may be at most four times that plus four units in the last
    place of the largest logit (as in test_gpt2_parity)."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, backbone.config.vocab_size, (2, 9))
    mask = None if case == "no mask" else padded(case)
    positions = rng.integers(0, 50, (2, 9)) if case == "positions" else None

    @torch.no_grad()
    def run(model):
        given = {}
        if mask is not None:
            given["attention_mask"] = torch.tensor(mask).long()
        if positions is not None:
            given["position_ids"] = torch.tensor(positions)
        out = model(input_ids=torch.tensor(tokens), **given)
        return out.logits.double().numpy()

    # PEFT adds the prefix's length to positions that it is given.
    ours = jax.jit(lambda model, *x: model(*x))(
        backbone,
        tokens,
        pair.kv,
        mask,
        None if positions is None else positions + LENGTH,
    )
    ours, theirs, truth = np.asarray(ours, float), run(pair.peer), run(pair.exact)
    assert theirs.shape == ours.shape  # PEFT gives logits of the text only
    seen = padded("") if mask is None else mask
    ours, theirs, truth = ours[seen], theirs[seen], truth[seen]
    size, own = abs(truth).max(), abs(theirs - truth).max()
    print(
        f"largest difference: ours to PEFT {abs(ours - theirs).max():.2e}, ours to f64 "
        f"{abs(ours - truth).max():.2e}, PEFT to f64 {own:.2e}; logits up to {size:.1f}"
    )
    assert abs(ours - truth).max() <= 4 * own + 4 * 2.0**-23 * size
    without = np.asarray(backbone(jnp.asarray(tokens), None, jnp.asarray(seen)))[seen]
    assert abs(without - truth).max() > 0.1 * size, "the prefix changes nothing"


@grouped_too
@pytest.mark.parametrize("beams", [1, 4])
def test_texts_are_the_same(backbone, tokenizer, pair, beams):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(6, 300, n).tolist() for n in rng.integers(1, 13, 16)]
    width = max(map(len, prompts))
    with torch.no_grad():
        out = pair.peer.generate(
            input_ids=torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
            attention_mask=torch.tensor(
                [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
            ),
            max_new_tokens=NEW,
            num_beams=beams,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    decode = DecodeConfig(max_new_tokens=NEW, end_tokens=())
    if beams > 1:
        decode = dataclasses.replace(decode, method="beam", beams=beams)
    found = generate_sequences(
        backbone, tokenizer, prompts, prefix=pair.kv, decode=decode
    )
    assert [list(one.tokens) for [one] in found] == out[:, width:].tolist()
