"""Runs a command's work on a thread while the main thread takes signals.

Ray must not own the signals: its handlers end the process at once. It installs none when it is started on
another thread. That thread has to live as long as Ray does, because Ray's processes are tied to it
(PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

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

DONE, RETAKE = 0, 255
"""Bytes that the work sends to the main thread; others are the numbers of signals."""


def supervise(work: Work, grace_s: float) -> int:
    """Runs `work` on a thread of its own and turns signals into requests to stop.

    Args:
        work: returns the exit code; told by its argument when to stop. Its exceptions are raised here.
        grace_s: after the first signal the work has this long to return; then every process below this
            one is killed, and this one ends.
    """
    with processes.adopting_orphans(), _Signals() as signals:
        stop = Stop(lambda: signals.send(RETAKE))
        outcome: list[int | BaseException] = []

        def run() -> None:
            try:
                outcome.append(work(stop))
            except BaseException as error:
                outcome.append(error)
            finally:
                signals.send(DONE)

        thread = threading.Thread(target=run, name="work", daemon=True)
        thread.start()
        if not _wait(signals, stop, grace_s):
            _end_by_force(stop)
        thread.join()
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


class _Signals:
    """The signals of this process as bytes in a pipe: none is lost or waits for the main thread to look."""

    def __enter__(self) -> _Signals:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        self._handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.take()
        self._wakeup_fd = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_fd)
        for signum, handler in self._handlers.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        os.close(self._in)
        os.close(self._out)

    def take(self) -> None:
        """Makes the signals ours, whoever has them now."""
        for signum in SIGNALS:
            signal.signal(signum, _ignore)
        # Of a handler that was there in between.
        signal.alarm(0)

    def send(self, byte: int) -> None:
        """Puts a byte beside the signals."""
        os.write(self._in, bytes((byte,)))

    def receive(self, timeout_s: float | None) -> bytes:
        """What has come since the last call, at least one byte; empty after `timeout_s`."""
        readable, _, _ = select.select([self._out], [], [], timeout_s)
        return os.read(self._out, 256) if readable else b""


def _ignore(signum: int, frame: FrameType | None) -> None:
    """The pipe has the signal already."""


def _wait(signals: _Signals, stop: Stop, grace_s: float) -> bool:
    """Whether the work returned in time."""
    deadline_s: float | None = None
    while True:
        left_s = None if deadline_s is None else max(deadline_s - time.monotonic(), 0.0)
        received = signals.receive(left_s)
        if not received:
            return False
        if DONE in received:
            return True
        for byte in received:
            if byte == RETAKE:
                signals.take()
            elif byte not in SIGNALS:
                continue
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
