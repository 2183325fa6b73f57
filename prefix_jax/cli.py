"""The command line: which command is meant, and how it ends.

Nothing heavy is imported before a command runs, so that Ctrl-C ends in one way, also
while jax is being loaded.
"""

import os
import pkgutil
import signal
import sys
from collections.abc import Sequence

from prefix_jax.errors import InputError, closest, first_line, printable
from prefix_jax.process import keep_compiled_programs, keep_freed_memory
from prefix_jax.runs.interrupt import INTERRUPTED, end_at_once

USAGE = """\
usage: prefix-jax COMMAND ...

  train CONFIG      train a prefix (or, for comparison, the backbone) as a recipe says
  evaluate [CONFIG] score what a run left behind: loss and the task's scores; without
                    CONFIG by the recipe that the run recorded in its --workdir
  compare CONFIG    train and score several methods side by side
  sweep CONFIG      a grid of settings, data sizes and seeds; mean and spread of each
  compile CONFIG    would it fit a TPU slice? memory and collectives, without a TPU
  report RUN...     one HTML page of runs: curves, scores, samples, attention, settings
  generate          write with stored prefixes, from prompts, a file or standard input
  inspect DIR       what a stored prefix is: size, backbone, scores, norms, attention
  import SOURCE     store a prefix of PEFT, AdapterHub or Li & Liang's code as ours
  export DIR        write a prefix for PEFT, with a card
  shorten DIR       store the first positions of a prefix as one of their own

CONFIG is a recipe, a Python file with `config = Config(...)`; any of its values can be
overridden, for example --prefix.length 20 --train.steps 1000.

  prefix-jax train configs/quickstart.py --workdir runs/mine
  prefix-jax evaluate --workdir runs/mine
  prefix-jax inspect runs/mine
  prefix-jax export runs/mine --out my_adapter
  prefix-jax COMMAND --help    every option, with its meaning and default
"""

COMMANDS = {
    "train": "prefix_jax.cli_recipes:train",
    "evaluate": "prefix_jax.cli_recipes:evaluate",
    "compare": "prefix_jax.cli_recipes:compare",
    "sweep": "prefix_jax.cli_sweep:sweep",
    "compile": "prefix_jax.cli_recipes:compile_",
    "report": "prefix_jax.cli_recipes:report",
    "generate": "prefix_jax.cli_prefixes:generate",
    "inspect": "prefix_jax.cli_prefixes:inspect",
    "import": "prefix_jax.cli_prefixes:import_",
    "export": "prefix_jax.cli_prefixes:export",
    "shorten": "prefix_jax.cli_prefixes:shorten",
}
"""Where each command's function is: it takes the arguments after the command's name and
returns the exit status."""


def program() -> None:
    """What `prefix-jax` runs: `main`, in a process of its own."""
    end_at_once()
    keep_freed_memory()
    keep_compiled_programs()
    main()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; input that cannot be used ends with one message and status 2.

    So do files that cannot be read or written, and memory that is too small. Ctrl-C
    ends with status 130. If nobody reads standard output any more (as after `| head`),
    it ends in silence.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            status = _run(arguments)
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        # Else Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except OSError as error:
        print(f"error: {printable(_refusal(error))}", file=sys.stderr)
        status = 2
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        print(
            f"error: out of memory: {first_line(error).rstrip('.')}; lower "
            "train.batch_size or raise train.accumulate, lower data.max_length or "
            "prefix.length, or use backbone.remat; to generate, lower "
            "decode.batch_size, decode.beams or decode.sequences",
            file=sys.stderr,
        )
        status = 2
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise InputError(
            f"unknown command {name!r}{closest(name, COMMANDS)}\n"
            f"expected one of {', '.join(COMMANDS)}"
        )
    return pkgutil.resolve_name(COMMANDS[name])(rest)


def _refusal(error: OSError) -> str:
    """What the operating system refused, in the style of our own errors."""
    if error.strerror is None:  # one of our own, which says it all
        return str(error)
    place = error.filename or "a file or the output"
    return (
        f"{place}: {error.strerror}; check that the file or folder is there, what its "
        "rights allow, and the space on its disk"
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Of this machine, or of an accelerator: jax has one type for all its failures."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
