"""Ctrl-C and SIGTERM between steps rather than inside one."""

import signal
import threading
from types import FrameType


class Interrupt:
    """Context in which the first SIGINT or SIGTERM only raises a flag.

    The state of a run is donated to each step, so a step must not be torn apart. A
    second signal does what it always did.
    """

    def __init__(self):
        self.signal: int | None = None
        self._before = {}

    def __enter__(self) -> "Interrupt":
        # Python delivers signals to the main thread only; elsewhere nothing changes.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
