"""Backbones and tokenizers by name: folders, the hub, near misses."""

import pytest
from folders import SHAPE, assert_same
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from prefix_jax.errors import InputError
from prefix_jax.model import loading
from prefix_jax.model.loading import load_backbone, load_tokenizer

# Names.


def test_missing_folders_and_near_misses(folder, monkeypatch):
    monkeypatch.setattr(loading, "snapshot_download", None)  # the hub is not asked
    for name, message in {
        f"{folder.parent}/modle": 'folder .*/modle does not exist; .* "model"\\?',
        "./nowhere": "folder ./nowhere does not exist$",
        "": "the backbone's name is empty; give tiny, smollm2-135m, a folder",
        "~/no/such/folder": "does not exist",
        "tinny": 'no backbone tinny; did you mean "tiny"',
        "gpt2-meduim": 'did you mean "gpt2-medium"',
        "SmolLM2-135M": 'did you mean "smollm2-135m"',
        "smollm2": 'did you mean "smollm2-135m"',
    }.items():
        with pytest.raises(InputError, match=message):
            load_backbone(name)
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InputError, match='did you mean "model"'):
        load_tokenizer("modell")
    assert load_backbone("model").config.n_embd == SHAPE["n_embd"]


def test_hub_names(folder, small, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert_same(load_backbone("openai-community/gpt2"), small)
    ((name, patterns),) = asked
    assert name == "openai-community/gpt2"
    assert {"config.json", "model.safetensors"} <= set(patterns)
    assert not any("bin" in pattern or pattern.startswith("*") for pattern in patterns)

    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load_backbone("gpt2")
    assert any("pytorch_model.bin" in pattern for pattern in asked[-1][1])


def test_hub_out_of_reach(monkeypatch):
    def fail(error):
        def download(*_, **__):
            raise error

        monkeypatch.setattr(loading, "snapshot_download", download)

    fail(LocalEntryNotFoundError("Name or service not known\nand more"))
    with pytest.raises(InputError) as caught:
        load_backbone("gpt2-medium")
    assert "could not fetch gpt2-medium" in str(caught.value)
    assert "(Name or service not known)" in str(caught.value)
    assert "hf download gpt2-medium --local-dir FOLDER" in str(caught.value)

    class Response:
        headers, request = {}, None

    fail(RepositoryNotFoundError("404", response=Response()))
    with pytest.raises(InputError, match="no repository someone/gpt2"):
        load_tokenizer("someone/gpt2")


# Tokenizers.


def test_tokenizer_of_a_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "The mill: é 123  \n name"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.eos_token_id == loaded.bos_token_id == tokenizer.eos_token_id


def test_tokenizer_without_a_configuration(tmp_path, tokenizer):
    """GPT-2's files on the hub name no special token; its end token is then meant."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_token_id == loaded.bos_token_id == tokenizer.eos_token_id

    text = (tmp_path / "tokenizer.json").read_text().replace("<|endoftext|>", "<end>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r'no bos_token.*"bos_token" in its'):
        load_tokenizer(tmp_path)


def test_gpt2s_older_tokenizer_files(tmp_path, tokenizer):
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    text = " The old mill by Blue Spice"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.eos_token == loaded.bos_token == "<|endoftext|>"
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "qwen2"}')
    with pytest.raises(InputError, match="how a 'qwen2' cuts a text into words"):
        load_tokenizer(tmp_path)
    config.write_text('{"n_layer": 3}')
    assert load_tokenizer(tmp_path).encode(text) == tokenizer.encode(text)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"no tokenizer in .* expected tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\x00\xff", b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_named(tmp_path, tokenizer, content):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=f"the tokenizer in {tmp_path} cannot be read"):
        load_tokenizer(tmp_path)
