"""Who used the processors during a run, from /proc: this benchmark's processes, or somebody else.

Spinning engines collapse when the cores are shared, so a run beside foreign work says nothing.
Own processes carry a marker in their environment, which children inherit; that finds daemons too,
whose parent is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
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
    return ProcessCpu(parent_pid=int(fields[1]), ticks=sum(int(f) for f in fields[11:15]))


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

    def own_pids(self) -> list[int]:
        """Processes that carry the marker (not this one, unless it was started with it)."""
        pids = []
        for folder in self._proc.iterdir():
            if folder.name.isdigit():
                try:
                    environment = (folder / "environ").read_bytes()
                except OSError:
                    continue
                if self._needle in environment.split(b"\0"):
                    pids.append(int(folder.name))
        return sorted(pids)

    def snapshot(self) -> CpuSnapshot:
        """The totals now."""
        own_ticks = 0
        for pid in {os.getpid(), *self.own_pids()}:
            try:
                own_ticks += parse_process_cpu((self._proc / str(pid) / "stat").read_text()).ticks
            except OSError:
                continue
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
