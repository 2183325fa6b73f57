"""Recipes: Python files that make one `Config`."""

import importlib.util
import traceback
from pathlib import Path

from prefix_jax.config import Config
from prefix_jax.errors import NEAR_NAME, InputError, closest


def load_recipe(path: Path) -> Config:
    """The `config` of a recipe file. A recipe is Python and is run: read it first.

    Raises InputError if there is no such file or it does not make a Config.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; a recipe is a Python file, such as my.py")
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.py")]
        hint = closest(path.name, beside, cutoff=NEAR_NAME)
        raise InputError(f"recipe {path} does not exist{hint}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; a recipe ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError as error:
        raise InputError(f"{path}{_line(spec.origin, error)}: {error}") from error
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}{_line(spec.origin, error)}: {what}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise InputError(f"{path} makes no `config = Config(...)`; it must make one")
    return config


def _line(file: str | None, error: BaseException) -> str:
    """`, line 3`: the one of the recipe that was run when it failed, if one was."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f", line {lines[-1]}" if lines else ""
