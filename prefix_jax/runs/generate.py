"""Write with a stored prefix: what the command line's `generate` does."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from prefix_jax.config import Config, DecodeConfig
from prefix_jax.data.e2e import linearise
from prefix_jax.data.files import read_lines
from prefix_jax.data.tasks import is_e2e
from prefix_jax.data.tokens import encode_prompts
from prefix_jax.decoding.generate import generate
from prefix_jax.errors import InputError
from prefix_jax.model.loading import load_backbone, load_tokenizer
from prefix_jax.storage.artifact import load_prefix, read_metadata

Task = Literal["table_to_text", "language_modelling"]


@dataclasses.dataclass(frozen=True)
class Writer:
    """A backbone, a prefix if there is one, and the format that it was trained with."""

    backbone_name: str
    prefix_folder: Path | None
    recipe: Config

    def write(self, prompts: Sequence[str], decode: DecodeConfig) -> list[str]:
        """One text per prompt.

        For a table-to-text prefix a prompt is a source, put before the separator as in
        training (E2E's meaning representations are linearised); else it is the text to
        continue. Raises InputError for what cannot be decoded.
        """
        if not prompts:
            raise InputError(
                "there is no prompt; give one on the command line, a --file, or lines "
                "on standard input"
            )
        backbone = load_backbone(self.backbone_name, dtype=self.recipe.backbone.dtype)
        tokenizer = load_tokenizer(self.backbone_name)
        prefix = None
        if self.prefix_folder is not None:
            prefix = load_prefix(self.prefix_folder, backbone)
        ready = prompts
        if self.recipe.data.task == "table_to_text":
            ready = encode_prompts(self._sources(prompts), tokenizer)
        texts = generate(backbone, tokenizer, ready, prefix=prefix, decode=decode)
        return [text.strip() for text in texts]

    def _sources(self, prompts: Sequence[str]) -> list[str]:
        if not is_e2e(self.recipe.data):
            return list(prompts)
        return [
            linearise(prompt) if prompt.rstrip().endswith("]") else prompt
            for prompt in prompts
        ]


def open_writer(prefix: Path | None, backbone: str | None, task: Task | None) -> Writer:
    """The writer for a prefix's folder (or the workdir of its run), or a bare backbone.

    Backbone and task come from the prefix's own record unless they are given.
    """
    folder = prefix
    if prefix is not None and (prefix / "best").is_dir():
        folder = prefix / "best"
    recipe = Config(data=dataclasses.replace(Config().data, task="language_modelling"))
    if folder is not None:
        metadata = read_metadata(folder)
        if metadata.recipe is not None:
            recipe = Config.from_dict(metadata.recipe)
        backbone = backbone or metadata.backbone_name
    if task is not None:
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, task=task)
        )
    return Writer(backbone or recipe.backbone.name, folder, recipe)


def read_prompts(file: Path | None) -> list[str]:
    """Lines of a file, or of standard input; blank ones are left out."""
    if file is None:
        if sys.stdin.isatty():
            print("prompts, one a line; end with Ctrl-D", file=sys.stderr)
        lines = sys.stdin.read().splitlines()
    else:
        if not file.is_file():
            raise InputError(f"there is no file {file} to read prompts from")
        lines = [line for _, line in read_lines(file)]
    return [line.strip() for line in lines if line.strip()]
