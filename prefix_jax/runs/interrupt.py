"""Ctrl-C and SIGTERM: at once, or between steps rather than inside one."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit status, as a shell has it."""

_received: int = signal.SIGINT
"""The signal that a run was stopped by."""


def stopped_status() -> int:
    """The exit status after a run was stopped: 130 by Ctrl-C, 143 by SIGTERM."""
    return 128 + _received


class Interrupt:
    """Context in which the first SIGINT or SIGTERM only raises a flag.

    The state of a run is donated to each step, so a step must not be torn apart. A
    second signal does what it always did.
    """

    def __init__(self, shared: Callable[[int], bool] | None = None):
        """`shared`: jax's `reached_preemption_sync_point`, for several processes: a
        signal to any of them stops all, at the same step."""
        self._given = False
        self._shared = shared
        self._before = {}

    def stops(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after each one."""
        if self._shared is None:
            return self._given
        stops = self._shared(step)
        if stops and not self._given:
            _remember(signal.SIGTERM)
        return stops

    def __enter__(self) -> "Interrupt":
        # Python delivers signals to the main thread only; elsewhere nothing changes.
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT]
            if self._shared is None:
                numbers.append(signal.SIGTERM)
            for number in numbers:
                self._before[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self._given = True
        _remember(number)
        self._restore()
        if self._shared is not None:  # by jax, which has taken over SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _remember(number: int) -> None:
    global _received
    _received = number


def end_at_once() -> None:
    """From now on SIGINT ends the process, with one line and status 130.

    KeyboardInterrupt does not do it: raised in a callback of the garbage collector it
    is lost, and the interpreter crashes when it takes down extension modules that were
    half loaded. Files are replaced whole (`storage.files`), so nothing is torn apart.
    """
    signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(Exception):  # interrupted inside a flush, or closed
        sys.stdout.flush()
    # A progress bar has hidden the cursor.
    shown = b"\x1b[?25h" if os.isatty(2) else b""
    with contextlib.suppress(OSError):
        os.write(2, shown + b"interrupted\n")
    os._exit(INTERRUPTED)
