"""Options of every command: a dataclass each, read by tyro, errors in our own words."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from prefix_jax.checks import choices, describe, is_tuple, words
from prefix_jax.config import FIELDS, Config
from prefix_jax.errors import InputError, closest
from prefix_jax.recipe import load_recipe

_Options = TypeVar("_Options")
_Recipe = TypeVar("_Recipe", bound=Config)


def parse(
    kind: type[_Options],
    arguments: Sequence[str],
    program: str,
    default: _Options | None = None,
) -> _Options:
    """The options of a command, over `default` or the dataclass's own defaults.

    Raises InputError for an option that does not exist, one without its value or with
    one of another type, and an argument too many or too few. `--help` prints and exits.
    """
    known = _options(kind)
    if not asks_for_help(arguments):
        _check_names(arguments, known, program)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, rest = tyro.cli(
                kind,
                default=default,
                args=arguments,
                prog=program,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _explained(stop, said.getvalue(), kind, arguments, program) from None
    assert isinstance(options, kind)
    if rest:
        hint = closest(_name(f"--{rest[0]}"), known, cutoff=0.9)
        raise InputError(
            f'{program}: "{rest[0]}" belongs to no option{hint} (see {program} --help)'
        )
    return options


def with_recipe(
    command: type[_Recipe],
    name: str,
    arguments: list[str],
    recorded: Config | None = None,
) -> _Recipe:
    """The options of a command over the recipe named first, or over `recorded`.

    Raises InputError as `parse` and `load_recipe`, and where there is no recipe.
    """
    program = f"prefix-jax {name}"
    if arguments and not arguments[0].startswith("-"):
        recipe, *arguments = arguments
        default = command(**_sections(load_recipe(Path(recipe))))
        program = f"{program} {recipe}"
    elif recorded is not None:
        default = command(**_sections(recorded))
    elif asks_for_help(arguments):
        default, program = command(), f"{program} CONFIG"
    else:
        raise InputError(
            f"{program} needs a recipe first: {program} configs/quickstart.py"
        )
    return parse(command, arguments, program, default)


def config_of(options: Config) -> Config:
    """The recipe in a command's options."""
    return Config(**_sections(options))


def _sections(config: Config) -> dict:
    return {
        field.name: getattr(config, field.name) for field in dataclasses.fields(Config)
    }


def options_of(values: Mapping[str, object]) -> list[str]:
    """The words of a command line that give a recipe's fields these values, by name."""
    return [word for item in values.items() for word in _option(*item)]


def _option(field: str, value: object) -> list[str]:
    option = field.replace("_", "-")
    if FIELDS[field] is bool:
        section, _, name = option.partition(".")
        return [f"--{option}" if value else f"--{section}.no-{name}"]
    return [f"--{option}", *words(value)]


def parse_value(field: str, hint: Any, value: str, program: str) -> object:
    """What `--field value` means for a field of this type hint, such as `train.steps`.

    A field of several values takes one text with blanks between them. Raises InputError
    as `parse`.
    """
    section, _, name = field.partition(".")
    # A dataclass of just this field, so that other fields' checks have no say.
    inner = dataclasses.make_dataclass("Inner", [(name, hint)])
    outer = dataclasses.make_dataclass("Outer", [(section, inner)])
    words = value.split() if is_tuple(hint) else [value]
    option = f"--{field}".replace("_", "-")
    return getattr(getattr(parse(outer, [option, *words], program), section), name)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the user wants to read rather than to run."""
    return any(argument in ("-h", "--help") for argument in arguments)


def _options(kind: type, prefix: str = "--") -> dict[str, Any]:
    """The type hint of each option by the name it has on the command line."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        _, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if tyro.conf.Positional in marks:
            continue
        names = [mark.name for mark in marks if getattr(mark, "name", None)]
        option = (names or [name])[0].replace("_", "-")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found |= _options(hint, f"{prefix}{option}.")
            continue
        found[f"{prefix}{option}"] = hint
        if hint is bool:
            found[f"{prefix}no-{option}"] = hint
    return found


def _check_names(
    arguments: Sequence[str], known: Mapping[str, Any], program: str
) -> None:
    for argument in arguments:
        if re.match("--?[A-Za-z]", argument) and _name(argument) not in known:
            raise InputError(
                f"{program} has no option {_name(argument)}"
                f"{closest(_name(argument), known)} (see {program} --help)"
            )


def _name(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _explained(
    stop: SystemExit,
    said: str,
    kind: type,
    arguments: Sequence[str],
    program: str,
) -> InputError:
    """What tyro printed before it stopped, as we would say it."""
    cause = stop.__context__
    while cause is not None:
        if isinstance(cause, InputError):  # of a section's own check
            return cause
        cause = cause.__context__
    known = _options(kind)
    for option in re.findall(r"--[\w.-]+", said):
        if option in known and option in map(_name, arguments):
            return _wrong_value(option, known[option], arguments)
    needed = [_shown(field) for field in dataclasses.fields(kind) if _required(field)]
    if needed:
        return InputError(
            f"{program} needs {' and '.join(needed)}; got "
            f"{' '.join(arguments) or 'nothing'} (see {program} --help)"
        )
    body = re.split(r"-{20,}", said)[1:2]
    return InputError(" ".join("".join(body).split()) or f"see {program} --help")


def _wrong_value(option: str, hint: Any, arguments: Sequence[str]) -> InputError:
    names = [_name(argument) for argument in arguments]
    place = len(names) - 1 - names[::-1].index(option)
    _, equals, value = arguments[place].partition("=")
    given = [value] if equals else []
    for argument in arguments[place + 1 :]:
        if argument.startswith("--"):
            break
        given.append(argument)
    if not is_tuple(hint):
        given = given[:1]  # the rest are arguments
    allowed = [str(choice) for choice in choices(hint)]
    wrong = [value for value in given if value not in allowed] if allowed else given
    shown = f'is "{" ".join(wrong)}"' if given else "has no value"
    hinted = closest(wrong[0], allowed) if wrong else ""
    return InputError(f"{option} {shown}; expected {describe(hint)}{hinted}")


def _required(field: dataclasses.Field) -> bool:
    return (
        field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )


def _shown(field: dataclasses.Field) -> str:
    marks = get_args(field.type)[1:]
    name = field.name.replace("_", "-")
    return name.upper() if tyro.conf.Positional in marks else f"--{name}"
