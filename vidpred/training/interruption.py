"""SIGINT and SIGTERM ask a run to save and stop; the loop decides when."""

import contextlib
import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Iterator, Optional

from vidpred import distributed

logger = logging.getLogger(__name__)

# torchrun hands a Ctrl-C on to processes that have it from the terminal already: one key press, two signals.
ECHO_SECONDS = 2.0


class StopRequest:
    """Becomes true at the first SIGINT or SIGTERM; a second Ctrl-C ends the process at once.

    A SIGTERM that follows is ignored: torchrun sends it once more to all ranks while they save. `promise` tells
    the user what happens until then.
    """

    def __init__(self, promise: str = "saving, then stopping") -> None:
        self._promise = promise
        self._signal: Optional[signal.Signals] = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self._signal is not None

    @property
    def name(self) -> str:
        """The name of the signal, for the log."""
        return self._signal.name if self._signal else "none"

    @property
    def exit_code(self) -> int:
        """What a process that ends for it returns; 0 without a signal."""
        return 128 + self._signal if self._signal else 0

    def receive(self, number: int, frame: Optional[FrameType] = None) -> None:
        if self._signal is None:
            self._signal, self._since = signal.Signals(number), time.monotonic()
            if distributed.is_main():
                logger.warning("%s: %s; a second Ctrl-C ends at once", self.name, self._promise)
        elif number == signal.SIGINT and time.monotonic() - self._since > ECHO_SECONDS:
            os._exit(128 + number)

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handles the two signals inside the block. Outside the main thread nothing can be handled."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
