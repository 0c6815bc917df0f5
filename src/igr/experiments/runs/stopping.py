"""Ctrl-C, where nothing is lost."""

from __future__ import annotations

import signal
import threading

ENDS = ("done", "stopped", "failed", "lost")
"""How a task ends: names of the events after which it tells nothing more."""


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop, and all finished epochs are saved."""


class StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop where nothing is lost; the second one stops at once.

    >>> with StopRequest() as stop:
    ...     stop.requested
    False
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
