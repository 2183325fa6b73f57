"""Prefixes of others give the logits here that they give there."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import LOGITS
from safetensors.numpy import save_file

from prefix_jax.errors import InputError
from prefix_jax.model.gpt2 import GPT2
from prefix_jax.model.prefix import init_prefix
from prefix_jax.prefix_config import PrefixConfig
from prefix_jax.storage.artifact import load_prefix, save_prefix
from prefix_jax.storage.importing import find_prefix, import_prefix

LENGTH, HIDDEN = 5, 16
TEXT = np.array([[7, 8, 9, 10], [3, 1, 4, 1]])


@pytest.fixture(scope="module")
def kv(backbone):
    config = PrefixConfig(init="random", length=LENGTH)
    return init_prefix(backbone, config, key=jax.random.key(1))()


def columns(backbone):
    return backbone.config.n_layer * 2 * backbone.config.n_embd


def network(backbone, seed=0):
    """The paper's reparametrisation as PyTorch names it, and what it folds to."""
    rng = np.random.default_rng(seed)
    d, c = backbone.config.n_embd, columns(backbone)
    tensors = {
        "wte.weight": rng.normal(size=(LENGTH, d)),
        "control_trans.0.weight": rng.normal(size=(HIDDEN, d)) * 0.2,
        "control_trans.0.bias": rng.normal(size=HIDDEN),
        "control_trans.2.weight": rng.normal(size=(c, HIDDEN)) * 0.2,
        "control_trans.2.bias": rng.normal(size=c),
    }
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def tensor_of(kv):
    """[P, L*2*D] from keys and values, written out."""
    both = np.stack([kv.keys[:, 0], kv.values[:, 0]], 1)  # L 2 P H K
    return np.ascontiguousarray(both.transpose(2, 0, 1, 3, 4)).reshape(LENGTH, -1)


def save_as_peft(folder, kv, backbone):
    """Our files, of which PEFT would write these."""
    save_prefix(folder, kv, backbone=backbone)
    (folder / "prefix_jax.json").unlink()


def test_our_own_prefix_comes_back(tmp_path, backbone, kv):
    save_as_peft(tmp_path / "p", kv, backbone)
    again = import_prefix(tmp_path / "p", backbone)
    np.testing.assert_array_equal(again.keys, kv.keys)
    np.testing.assert_array_equal(again.values, kv.values)


@pytest.mark.parametrize("part", ["folder", "file"])
def test_another_backbone_of_as_many_columns_is_refused(tmp_path, backbone, kv, part):
    """6 layers of width 16 would have the columns of 3 of width 32."""
    save_as_peft(tmp_path / "p", kv, backbone)
    config = dataclasses.replace(backbone.config, n_layer=6, n_embd=16, n_head=2)
    other = GPT2(config, key=jax.random.key(0))
    assert columns(other) == columns(backbone)
    source = tmp_path / "p"
    if part == "file":
        source /= "adapter_model.safetensors"
    with pytest.raises(InputError, match="another backbone: num_layers 3 there, 6 her"):
        import_prefix(source, other)


def test_a_file_is_what_its_folder_says(tmp_path, backbone):
    save_file(network(backbone), tmp_path / "pytorch_adapter.safetensors")
    config = tmp_path / "adapter_config.json"
    for said in ({"config": {"non_linearity": "relu"}}, {"non_linearity": "relu"}):
        config.write_text(json.dumps(said))
        for source in (tmp_path, tmp_path / "pytorch_adapter.safetensors"):
            with pytest.raises(InputError, match="there is relu"):
                import_prefix(source, backbone)
    config.write_text(json.dumps({"config": "prefix_tuning"}))
    assert import_prefix(tmp_path, backbone).length == LENGTH


@pytest.mark.parametrize("place", ["", "prefix_tuning.prefix_tunings.e2e.prefix."])
@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_the_network_of_the_paper_is_folded(tmp_path, backbone, place, ending):
    """The original repository's tensors, and AdapterHub's, which nest them."""
    torch = pytest.importorskip("torch")
    tensors = {f"{place}{name}": x for name, x in network(backbone).items()}
    inner = torch.nn.Sequential(
        torch.nn.Linear(backbone.config.n_embd, HIDDEN),
        torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, columns(backbone)),
    )
    weights = {n: torch.tensor(x) for n, x in tensors.items()}
    inner.load_state_dict(
        {
            n.split("control_trans.")[1]: x
            for n, x in weights.items()
            if "control_trans" in n
        }
    )
    with torch.no_grad():
        expected = inner(weights[f"{place}wte.weight"]).numpy()
    file = tmp_path / f"pytorch_adapter{ending}"
    if ending == ".bin":
        torch.save(weights, file)
    else:
        save_file(tensors, file)
    for source in (file, tmp_path):
        found = import_prefix(source, backbone)
        # Numbers up to 4, rounded once or twice: neighbours are 2.4e-7 apart there.
        np.testing.assert_allclose(tensor_of(found), expected, rtol=0, atol=1e-6)


HUB = "transformer.prefix_tuning.prefix_tunings.mine.self_prefix."


@pytest.mark.parametrize(
    ("place", "mode"), [("", "shifted"), (HUB, "unshifted")], ids=["li", "hub"]
)
@pytest.mark.parametrize("flat", [True, False])
def test_adapterhub_alone_leaves_the_positions(
    tmp_path, backbone, kv, place, mode, flat
):
    """Li & Liang hand theirs over as past_key_values, which move the positions."""
    tensors = network(backbone)
    if flat:
        tensors = {"control_trans": tensor_of(kv).reshape(-1)}
    tensors = {f"{place}{name}": x for name, x in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    found = find_prefix(tmp_path, backbone)
    assert found.prefix.position_mode == mode
    assert ("PEFT" in " ".join(found.notes)) == (mode == "unshifted")
    if flat:
        np.testing.assert_array_equal(found.prefix.keys, kv.keys)
        np.testing.assert_array_equal(found.prefix.values, kv.values)
        assert "960 numbers are read as 5 positions of 192" in found.notes[0]
    save_prefix(tmp_path / "ours", found.prefix, backbone=backbone)
    assert load_prefix(tmp_path / "ours", backbone).position_mode == mode


def test_a_cache_of_words_keeps_its_axes(tmp_path, backbone, kv):
    """Li & Liang's init_shallow_word: layer and key or value, row, head, position."""
    layers, _, length, heads, width = kv.keys.shape
    cache = np.empty((2 * layers, 1, heads, length, width), np.float32)
    for layer, head, position in np.ndindex(layers, heads, length):
        cache[2 * layer, 0, head, position] = kv.keys[layer, 0, position, head]
        cache[2 * layer + 1, 0, head, position] = kv.values[layer, 0, position, head]
    save_file({"control_trans": cache}, tmp_path / "model.safetensors")
    found = find_prefix(tmp_path, backbone)
    np.testing.assert_array_equal(found.prefix.keys, kv.keys)
    np.testing.assert_array_equal(found.prefix.values, kv.values)
    assert found.prefix.position_mode == "shifted" and not found.notes


def test_what_only_training_needs_is_no_part_of_it(tmp_path, backbone):
    tensors = network(backbone)
    moments = {f"optimizer.{n}.exp_avg": x for n, x in tensors.items() if "wte" in n}
    save_file(tensors | moments, tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "alone.safetensors")
    found = import_prefix(tmp_path, backbone)
    alone = import_prefix(tmp_path / "alone.safetensors", backbone)
    np.testing.assert_array_equal(found.keys, alone.keys)


def test_adapterhub_says_its_length(tmp_path, backbone, kv):
    flat = {f"{HUB}control_trans": tensor_of(kv).reshape(-1)}
    save_file(flat, tmp_path / "pytorch_adapter.safetensors")
    said = {"prefix_length": LENGTH, "leave_out": [], "flat": True}
    config(tmp_path, config=said, hidden_size=32, model_type="gpt2")
    found = find_prefix(tmp_path, backbone)
    assert found.length == LENGTH and len(found.notes) == 1


@pytest.mark.parametrize("described", [True, False])
def test_prompt_tuning_equals_its_embeddings_before_the_text(
    tmp_path, backbone, described
):
    embeddings = np.random.default_rng(0).normal(size=(LENGTH, 32)).astype(np.float32)
    save_file({"prompt_embeddings": embeddings}, tmp_path / "adapter_model.safetensors")
    if described:
        config = {"peft_type": "PROMPT_TUNING"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = import_prefix(tmp_path, backbone)
    text = jnp.asarray(TEXT)
    words = backbone.token_embedding[...][text]
    before = jnp.broadcast_to(embeddings, (2, *embeddings.shape))
    whole = backbone.forward(jnp.concatenate([before, words], 1)).hidden
    expected = backbone.logits(whole)[:, LENGTH:]
    np.testing.assert_allclose(backbone(text, found), expected, **LOGITS)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING"])
@pytest.mark.parametrize("safe", [True, False])
def test_peft_gives_the_same_logits(tmp_path, backbone, model_folder, kind, safe):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel.from_pretrained(model_folder).eval()
    make = {
        "PREFIX_TUNING": peft.PrefixTuningConfig,
        "PROMPT_TUNING": peft.PromptTuningConfig,
    }[kind]
    config = make(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    torch.manual_seed(0)
    peer = peft.get_peft_model(model, config).eval()
    peer.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    found = import_prefix(tmp_path / "theirs", backbone)
    assert found.length == LENGTH
    with torch.no_grad():
        expected = peer(input_ids=torch.tensor(TEXT)).logits.numpy()
    expected = expected[:, -TEXT.shape[1] :]
    np.testing.assert_allclose(backbone(jnp.asarray(TEXT), found), expected, **LOGITS)


def config(folder, **values):
    (folder / "adapter_config.json").write_text(json.dumps(values))


def gated(folder, backbone):
    tensors = network(backbone) | {"prefix_gates.a.weight": np.ones(3, np.float32)}
    save_file(tensors, folder / "model.safetensors")


def of_an_encoder(folder, backbone):
    tensors = {f"encoder.{n}": x for n, x in network(backbone).items()}
    tensors |= {f"self.{n}": x for n, x in network(backbone).items()}
    save_file(tensors, folder / "model.safetensors")


def relu(folder, backbone):
    save_file(network(backbone), folder / "model.safetensors")
    config(folder, config={"non_linearity": "relu"})


def deeper(folder, backbone):
    more = {"control_trans.4.weight": np.ones((2, 2), np.float32)}
    save_file(network(backbone) | more, folder / "model.safetensors")


def infix(folder, backbone):
    tensors = network(backbone)
    tensors["wte2.weight"] = tensors["wte.weight"]
    save_file(tensors, folder / "model.safetensors")


def with_bottlenecks(folder, backbone):
    """AdapterHub's MAM: a prefix, and adapters beside it."""
    tensors = {f"{HUB}{name}": x for name, x in network(backbone).items()}
    down = "transformer.h.0.output_adapters.adapters.mine.adapter_down.weight"
    tensors[down] = np.ones((2, 32), np.float32)
    save_file(tensors, folder / "pytorch_adapter.safetensors")


def with_a_head(folder, backbone):
    tensors = {
        "prompt_embeddings": np.ones((3, columns(backbone)), np.float32),
        "base_model.score.weight": np.ones((2, 32), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config(folder, peft_type="PREFIX_TUNING", task_type="SEQ_CLS")


def with_weights(folder, backbone):
    """Of a backbone that may have been trained, too."""
    tensors = {"control_trans": np.ones(columns(backbone), np.float32)}
    tensors["h.0.ln_1.bias"] = np.ones(32, np.float32)
    save_file(tensors, folder / "model.safetensors")


def incomplete(folder, backbone):
    tensors = network(backbone)
    del tensors["control_trans.2.bias"]
    save_file(tensors, folder / "model.safetensors")


def misshapen(folder, backbone):
    tensors = network(backbone)
    tensors["wte.weight"] = tensors["wte.weight"][:, :-1].copy()
    save_file(tensors, folder / "model.safetensors")


def narrow(folder, backbone):
    flat = np.ones(columns(backbone) - 2, np.float32)
    save_file({"a.control_trans": flat}, folder / "model.safetensors")


def table(folder, backbone):
    both = np.ones((LENGTH, columns(backbone)), np.float32)
    save_file({"control_trans": both}, folder / "model.safetensors")


def cache_of_two(folder, backbone):
    both = np.ones((6, 2, 4, LENGTH, 8), np.float32)
    save_file({"control_trans": both}, folder / "model.safetensors")


def hub(folder, backbone, prefix=(), **described):
    """AdapterHub's flat prefix and its description."""
    flat = np.ones(LENGTH * columns(backbone), np.float32)
    save_file({f"{HUB}control_trans": flat}, folder / "pytorch_adapter.safetensors")
    config(folder, config={"prefix_length": LENGTH, **dict(prefix)}, **described)


def longer(folder, backbone):
    hub(folder, backbone, {"prefix_length": 10})


def without_layers(folder, backbone):
    hub(folder, backbone, {"leave_out": [0, 1]})


def wider(folder, backbone):
    hub(folder, backbone, hidden_size=64)


def of_bert(folder, backbone):
    hub(folder, backbone, hidden_size=32, model_type="bert")


def low_rank(folder, backbone):
    save_file({"a.lora_A": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    config(folder, peft_type="LORA")


def of_another_length(folder, backbone):
    tensor = np.ones((3, columns(backbone)), np.float32)
    save_file({"prompt_embeddings": tensor}, folder / "adapter_model.safetensors")
    config(folder, peft_type="PREFIX_TUNING", num_virtual_tokens=4)


def beyond_f32(folder, backbone):
    tensor = np.full((3, columns(backbone)), 1e300)
    save_file({"prompt_embeddings": tensor}, folder / "adapter_model.safetensors")


def unrelated(folder, backbone):
    save_file({"weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")


def nothing(folder, backbone):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gated, "has gates"),
        (of_an_encoder, "holds 2 prefixes"),
        (relu, "not the paper's .* relu"),
        (deeper, "not the paper's .* control_trans.4"),
        (infix, r"wte2.weight \[5, 32\] is no part of a prefix, but an infix"),
        (with_bottlenecks, "adapter_down.weight .* but bottleneck adapters"),
        (with_a_head, r"base_model.score.weight \[2, 32\] .* a classification head"),
        (with_weights, "h.0.ln_1.bias .* something else that was trained"),
        (incomplete, "lacks control_trans.2.bias"),
        (misshapen, "do not fit together"),
        (narrow, r"shape \[190\]; for P positions .* needs \[P\*192\] or \[6, 1, 4, P"),
        (table, r"shape \[5, 192\]; for P positions"),
        (cache_of_two, r"shape \[6, 2, 4, 5, 8\]; for P positions"),
        (longer, "5 positions, but .* says prefix_length 10"),
        (without_layers, r"leave_out is \[0, 1\], so these layers have no prefix"),
        (wider, "another backbone: hidden_size 64 there, 32 here"),
        (of_bert, "another backbone: model_type 'bert' there, 'gpt2' here"),
        (low_rank, "peft_type is 'LORA'"),
        (of_another_length, "3 positions, but .* says num_virtual_tokens 4"),
        (beyond_f32, "576 of 576 numbers in .* are NaN or infinite"),
        (unrelated, "holds the tensors weight; expected"),
        (nothing, "no weights in"),
    ],
)
def test_what_cannot_be_a_prefix_here_is_refused(tmp_path, backbone, make, message):
    make(tmp_path, backbone)
    with pytest.raises(InputError, match=message):
        import_prefix(tmp_path, backbone)


def test_a_file_that_is_not_there_is_named(tmp_path, backbone):
    with pytest.raises(InputError, match=r"nowhere.bin does not exist"):
        import_prefix(tmp_path / "nowhere.bin", backbone)


@pytest.mark.parametrize("text", [b"", b"root:x:0:0", b"\x80\x02.", bytes(range(256))])
def test_a_file_of_anything_is_refused(tmp_path, backbone, text):
    pytest.importorskip("torch")
    (tmp_path / "prefix.bin").write_bytes(text)
    with pytest.raises(InputError, match=r"prefix\.bin"):
        import_prefix(tmp_path / "prefix.bin", backbone)


@pytest.mark.parametrize("mode", ["shifted", "unshifted"])
@pytest.mark.parametrize("part", ["folder", "file"])
def test_what_we_stored_is_for_load_prefix(backbone, tmp_path, mode, part):
    """It knows its backbone's weights, and what PEFT's tensor cannot say."""
    config = PrefixConfig(init="random", length=3, position_mode=mode)
    prefix = init_prefix(backbone, config, key=jax.random.key(1))
    save_prefix(tmp_path, prefix(), backbone=backbone)
    [file] = tmp_path.glob("*.safetensors")
    with pytest.raises(InputError, match="needs no import: load_prefix reads"):
        import_prefix(tmp_path if part == "folder" else file, backbone)
