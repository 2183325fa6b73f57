"""Weight files of a Hugging Face folder, as named tensors that are read when asked.

Only numbers are ever taken from a file: safetensors holds nothing else, and a pickle
(`pytorch_model.bin`) is opened with `weights_only=True` or not at all.
"""

import functools
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prefix_jax.errors import InputError, json_kind, shortened, shown
from prefix_jax.json_text import parse

SAFE, PICKLE = ".safetensors", ".bin"
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types that weights may have, by safetensors' names."""


class Stored(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name of it; see `FLOATS`."""
    read: Callable[[], Float[np.ndarray, "..."]]

    def read_f32(self) -> Float[np.ndarray, "..."]:
        """In f32; numbers beyond its range become infinite."""
        with np.errstate(over="ignore"):
            return np.asarray(self.read(), np.float32)


def open_tensors(
    source: Path, stems: Sequence[str] = ("model", "pytorch_model")
) -> dict[str, Stored]:
    """The tensors of a weight file, or of a folder's, safetensors before PyTorch's.

    `stems` are the names that a folder's files may have, without their ending. Raises
    InputError if there are none, or about a damaged file or index.
    """
    if source.is_file():
        return (_open_safetensors if source.suffix == SAFE else _open_pickle)(source)
    if not source.is_dir():
        raise InputError(f"{source} does not exist; expected a folder or weight file")
    for ending, open_file in ((SAFE, _open_safetensors), (PICKLE, _open_pickle)):
        for stem in stems:
            if (source / f"{stem}{ending}").is_file():
                return open_file(source / f"{stem}{ending}")
            index = source / f"{stem}{ending}.index.json"
            if index.is_file():
                return _open_shards(index, open_file)
    held = ", ".join(sorted(path.name for path in source.iterdir())[:8])
    names = ", ".join(f"{stem}{SAFE}" for stem in stems)
    raise InputError(
        f"no weights in {source}: expected {names} (or its .index.json with shards), "
        f"or {stems[-1]}{PICKLE}; found {held or 'nothing'}"
    )


def save_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a safetensors file as transformers and PEFT do, which the umask governs.

    Raises OSError where that fails.
    """
    # safetensors makes a file of its own, which nobody else may read, and renames it.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    path.chmod(mode)


def read_json(path: Path) -> dict:
    """The object in a JSON file; InputError if the file is missing or holds none."""
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; expected a Hugging Face folder with a {path.name}"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {json_kind(values)}; expected an object")
    return values


def _open_shards(index: Path, open_file) -> dict[str, Stored]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise InputError(
            f"{index} has no weight_map; expected tensor names and their files"
        )
    for name, file in shards.items():
        # A path would let the index read files from outside the folder.
        plain = r"\w[\w.-]{,200}"
        if not isinstance(file, str) or not re.fullmatch(plain, file, re.ASCII):
            raise InputError(
                f"{index}: {shortened(name)} is in {shown(file)}; expected a "
                "file beside the index"
            )
    files = sorted(set(shards.values()))
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise InputError(
            f"{index} names {len(files)} files, of which {len(absent)} are not beside "
            f"it: {', '.join(absent[:8])}; copy or download them again"
        )
    tensors = {}
    for file in files:
        held = open_file(index.parent / file)
        listed = {name for name, shard in shards.items() if shard == file}
        if lost := sorted(listed - held.keys()):
            raise InputError(
                f"{index} promises {', '.join(lost[:8])} in {file}, where it is not; "
                "the index and the files are of different models"
            )
        tensors.update(held)
    return tensors


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file = safe_open(path, framework="numpy")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part = file.get_slice(name)
            read = functools.partial(file.get_tensor, name)
            tensors[name] = Stored(tuple(part.get_shape()), part.get_dtype(), read)
        return tensors
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); "
            "copy or download it again"
        ) from None


def _is_pickle(path: Path) -> bool:
    """Whether it begins as a pickle does, or is a zip file, which holds one."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == pickle.PROTO


def _open_pickle(path: Path) -> dict[str, Stored]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is a PyTorch pickle, which only torch can read, and torch is not "
            "installed; install torch, or where it is installed convert the folder to "
            f"safetensors once:\n  {_conversion(path.parent)}"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore"):  # the refusal says it all
            values = torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),  # not of files from before torch 1.6
            )
    except pickle.UnpicklingError:
        if not _is_pickle(path):
            raise InputError(
                f"{path} is no weight file: neither safetensors nor what torch.save "
                "writes"
            ) from None
        raise InputError(
            f"{path} holds more than tensors, and loading it could run code; refused: "
            "ask its author for safetensors"
        ) from None
    # On bytes that are no pickle its machine fails in any way there is.
    except Exception as error:
        raise InputError(
            f"{path} is not a PyTorch file that can be read: {_first_line(error)}; "
            f"convert the folder to safetensors:\n  {_conversion(path.parent)}"
        ) from None
    if not isinstance(values, Mapping):
        raise InputError(
            f"{path} holds {type(values).__name__}; expected named tensors"
        )
    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
    }
    tensors = {}
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path}: {shortened(str(name))} is {type(value).__name__}; expected "
                "only tensors, by name"
            )
        plain = value.device.type == "cpu" and value.layout == torch.strided
        if not plain or value.is_quantized:
            raise InputError(
                f"{path}: {shortened(name)} is a tensor of another kind (quantized, "
                "sparse or without numbers); expected plain ones"
            )
        # A view may repeat a few numbers to more than any memory holds.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"{path}: {shortened(name)} has shape {list(value.shape)}, but the "
                "file holds fewer numbers for it; store it without views"
            )
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        tensors[name] = Stored(
            tuple(value.shape),
            names.get(value.dtype, str(value.dtype)),
            # numpy has no bf16 of torch's; f32 holds each bf16 exactly.
            lambda value=value, wide=wide: (
                value.detach().to(wide).resolve_neg().numpy()
            ),
        )
    return tensors


def _conversion(folder: Path) -> str:
    """A command that adds safetensors to a folder, where torch is installed."""
    return (
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained(r'{folder}').save_pretrained(r'{folder}')\""
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
