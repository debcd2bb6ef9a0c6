"""Processes under this one, from Linux's /proc: what is left of them after a shutdown is ended by force."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05
KILLED_S = 5.0
"""What was killed is gone once the system has found time to end it; this is more than it takes."""
PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one with the same id."""

    pid: int
    start_ticks: int
    """When it began, in clock ticks since boot."""

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.start_ticks


def descendants(root: int | None = None) -> frozenset[Process]:
    """All living processes below `root` (this process when absent), however deep."""
    children: dict[int, list[Process]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            parent, start_ticks = stat
            children[parent].append(Process(int(entry.name), start_ticks))
    found: set[Process] = set()
    open_pids = [os.getpid() if root is None else root]
    while open_pids:
        for child in children[open_pids.pop()]:
            found.add(child)
            open_pids.append(child.pid)
    return frozenset(found)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Within the block, what a descendant leaves behind when it ends stays a descendant of this process."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def end(processes: Iterable[Process], patience_s: float) -> int:
    """Waits until all are gone; kills those that are left after `patience_s`, and waits for these.

    Returns:
        How many had to be killed.
    """
    left = _wait(processes, patience_s)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    _wait(left, KILLED_S)
    return len(left)


def _wait(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Those that are still alive after that time."""
    deadline_s = time.monotonic() + timeout_s
    left = [process for process in processes if process.alive]
    while left and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        left = [process for process in left if process.alive]
    return left


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent, start in ticks), or None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold anything; what follows the last one is plain.
    fields = text.rpartition(")")[2].split()
    state, parent, start_ticks = fields[0], int(fields[1]), int(fields[19])
    return None if state in "ZX" else (parent, start_ticks)
