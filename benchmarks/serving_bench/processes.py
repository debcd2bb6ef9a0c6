"""Helpers for the processes that engines run in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LOG_TAIL_LINES = 30
COMMAND_LINE_LENGTH = 120


def read_tail(log_file: Path | None) -> str:
    """A log's last lines, for an error message."""
    if log_file is None or not log_file.exists():
        return "(no log)"
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def wait_until(condition: Callable[[], bool], deadline_s: float, poll_s: float = 0.1) -> bool:
    """Polls until the condition holds; False when it did not within `deadline_s`."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= end_s:
            return False
        time.sleep(poll_s)
    return True


def end_leftovers(own_pids: Callable[[], Sequence[int]], deadline_s: float) -> list[str]:
    """Waits for a run's processes to end and kills those that are still there.

    Returns:
        The killed ones, as `PID (command line)`.
    """
    if wait_until(lambda: not own_pids(), deadline_s):
        return []
    killed = []
    for pid in own_pids():
        command = _command_line(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed.append(f"{pid} ({command})")
    return killed


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return b" ".join(words).decode(errors="replace").strip()[:COMMAND_LINE_LENGTH]
