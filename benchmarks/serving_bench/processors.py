"""Who used the processors during a run, from /proc: this benchmark's processes, or somebody else.

Spinning engines collapse when the cores are shared, so a run beside foreign work says nothing.
Own processes carry a marker in their environment, which finds daemons too, whose parent is gone. A process
that renames itself, as Ray's workers do, overwrites its environment: so descendants are followed as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MARKER_VARIABLE = "EXPERTMESH_BENCHMARK_RUN"


@dataclass(frozen=True, slots=True)
class CpuSnapshot:
    """Totals at one moment, in seconds."""

    wall_s: float
    busy_s: float
    """User and system time of the watched cores, whoever used it. Interrupts are not counted."""
    steal_s: float
    """Taken from the watched cores by the hypervisor."""
    own_s: float
    """Used by own processes, and by those of their children that have ended."""
    client_s: float
    """Used by this process alone (within own_s)."""


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """Mean use between two snapshots, in cores."""

    window_s: float
    own_cores: float
    client_cores: float
    foreign_cores: float
    """What neither this benchmark nor an engine of its own used, the hypervisor's share included."""


@dataclass(frozen=True, slots=True)
class ProcessCpu:
    """What /proc/PID/stat says of one process."""

    parent_pid: int
    ticks: int
    """User and system time of the process and of the children that it has waited for."""
    started_ticks: int
    """Since boot; tells a process from a later one with the same id."""


def parse_core_ticks(proc_stat: str, cores: Iterable[int]) -> tuple[int, int]:
    """Busy and stolen clock ticks of `cores` out of the text of /proc/stat."""
    wanted = {f"cpu{core}" for core in cores}
    busy = stolen = 0
    for line in proc_stat.splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, _irq, _softirq, steal = (int(f) for f in fields[:8])
            busy += user + nice + system
            stolen += steal
            wanted.discard(name)
    if wanted:
        raise ValueError(f"/proc/stat has no line for {', '.join(sorted(wanted))}")
    return busy, stolen


def parse_process_cpu(pid_stat: str) -> ProcessCpu:
    """Reads the text of /proc/PID/stat; the command's name in it may hold spaces and brackets."""
    fields = pid_stat[pid_stat.rindex(")") + 2 :].split()
    return ProcessCpu(
        parent_pid=int(fields[1]),
        ticks=sum(int(f) for f in fields[11:15]),
        started_ticks=int(fields[19]),
    )


def with_descendants(roots: Iterable[int], processes: Mapping[int, ProcessCpu]) -> set[int]:
    """`roots` and every process of which one of them is an ancestor."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent_pid, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def usage_between(start: CpuSnapshot, end: CpuSnapshot) -> CpuUsage:
    """Mean use in cores from `start` to `end`. Raises ValueError when no time has passed."""
    window_s = end.wall_s - start.wall_s
    if window_s <= 0:
        raise ValueError(f"the window is {window_s} s long")
    own_s = end.own_s - start.own_s
    others_s = end.busy_s - start.busy_s - own_s
    steal_s = end.steal_s - start.steal_s
    return CpuUsage(
        window_s=window_s,
        own_cores=own_s / window_s,
        client_cores=(end.client_s - start.client_s) / window_s,
        # Ticks are sampled, processes' times are exact: the difference can fall below zero.
        foreign_cores=max(0.0, others_s) / window_s + steal_s / window_s,
    )


class CpuWatch:
    """Takes snapshots of the cores that a benchmark runs on."""

    def __init__(self, marker: str, cores: Iterable[int], proc: Path = Path("/proc")) -> None:
        self._needle = f"{MARKER_VARIABLE}={marker}".encode()
        self._cores = sorted(cores)
        self._proc = proc
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._seen: set[tuple[int, int]] = set()

    def own_pids(self) -> list[int]:
        """What this process has started, directly or not, without itself."""
        return sorted(set(self._own_processes()) - {os.getpid()})

    def snapshot(self) -> CpuSnapshot:
        """The totals now."""
        own_ticks = sum(process.ticks for process in self._own_processes().values())
        busy_ticks, stolen_ticks = parse_core_ticks((self._proc / "stat").read_text(), self._cores)
        return CpuSnapshot(
            wall_s=time.perf_counter(),
            busy_s=busy_ticks / self._ticks_per_s,
            steal_s=stolen_ticks / self._ticks_per_s,
            own_s=own_ticks / self._ticks_per_s,
            client_s=time.process_time(),
        )

    def foreign_cores(self, window_s: float) -> float:
        """Foreign use over the next `window_s` seconds."""
        start = self.snapshot()
        time.sleep(window_s)
        return usage_between(start, self.snapshot()).foreign_cores

    def _own_processes(self) -> dict[int, ProcessCpu]:
        processes: dict[int, ProcessCpu] = {}
        roots = {os.getpid()}
        for folder in self._proc.iterdir():
            if not folder.name.isdigit():
                continue
            pid = int(folder.name)
            try:
                processes[pid] = parse_process_cpu((folder / "stat").read_text())
                if self._needle in (folder / "environ").read_bytes().split(b"\0"):
                    roots.add(pid)
            except OSError:
                continue
        # Those seen before may have lost both marker and parent since.
        roots |= {pid for pid, process in processes.items() if (pid, process.started_ticks) in self._seen}
        own = {pid: processes[pid] for pid in with_descendants(roots, processes) if pid in processes}
        self._seen |= {(pid, process.started_ticks) for pid, process in own.items()}
        return own
