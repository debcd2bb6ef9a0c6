"""Runs a command's work on a thread while the main thread takes signals.

Ray must not own the signals: its handlers end the process at once. It installs none when it is started on
another thread. That thread has to live as long as Ray does, because Ray's processes are tied to it
(PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Literal

from expertmesh.cli import processes
from expertmesh.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AT_ONCE_S = 6.0
"""After a second signal the work has this long before its processes are killed."""


class StopRequestedError(Exception):
    """The work was asked to stop while it was still starting."""


class Stop:
    """Tells the work to stop: once to drain, twice to leave at once."""

    def __init__(self, retake: Callable[[], None]) -> None:
        self._retake = retake
        self.requested = threading.Event()
        self.at_once = threading.Event()

    def signals_taken(self) -> None:
        """To be called after Ray has started: its core puts a handler of its own under Python's, which
        aborts the process three seconds after a SIGTERM. Takes the signals back."""
        self._retake()

    def check(self) -> None:
        """Raises StopRequestedError when a stop has been asked for."""
        if self.requested.is_set():
            raise StopRequestedError

    def pause(self, seconds: float) -> None:
        """Waits, but raises StopRequestedError as soon as a stop is asked for."""
        self.requested.wait(seconds)
        self.check()


Work = Callable[[Stop], int]
Events = queue.SimpleQueue[Literal["signal", "retake", "done"]]


def supervise(work: Work, grace_s: float) -> int:
    """Runs `work` on a thread of its own and turns signals into requests to stop.

    Args:
        work: returns the exit code; told by its argument when to stop. Its exceptions are raised here.
        grace_s: after the first signal the work has this long to return; then every process below this
            one is killed, and this one ends.
    """
    events: Events = queue.SimpleQueue()
    stop = Stop(lambda: events.put("retake"))
    outcome: list[int | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work(stop))
        except BaseException as error:
            outcome.append(error)
        finally:
            events.put("done")

    def on_signal(signum: int, frame: FrameType | None) -> None:
        # SimpleQueue.put may interrupt itself; an Event's set may not.
        events.put("signal")

    def take() -> None:
        for signum in SIGNALS:
            signal.signal(signum, on_signal)
        # Of a handler that was there in between.
        signal.alarm(0)

    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    take()
    try:
        thread = threading.Thread(target=run, name="work", daemon=True)
        thread.start()
        if not _wait(events, stop, take, grace_s):
            _end_by_force(stop)
        thread.join()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _wait(events: Events, stop: Stop, take: Callable[[], None], grace_s: float) -> bool:
    """Whether the work returned in time."""
    deadline_s: float | None = None
    while True:
        left_s = None if deadline_s is None else deadline_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            return False
        try:
            event = events.get(timeout=left_s)
        except queue.Empty:
            return False
        if event == "done":
            return True
        if event == "retake":
            take()
        elif not stop.requested.is_set():
            stop.requested.set()
            deadline_s = time.monotonic() + grace_s
        elif not stop.at_once.is_set():
            stop.at_once.set()
            deadline_s = time.monotonic() + AT_ONCE_S
        else:
            return False


def _end_by_force(stop: Stop) -> None:
    print("expertmesh: the shutdown takes too long; killing what is left", file=sys.stderr, flush=True)
    processes.end(processes.descendants(), patience_s=0)
    os._exit(EXIT_INTERRUPTED if stop.at_once.is_set() else EXIT_FAILED)
