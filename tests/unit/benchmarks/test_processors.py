"""Accounting of processor use: what is ours, what is foreign."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving_bench.processors import (
    CpuSnapshot,
    CpuWatch,
    ProcessCpu,
    parse_core_ticks,
    parse_process_cpu,
    usage_between,
)

PROC_STAT = """cpu  100 20 30 4000 5 6 7 8 0 0
cpu0 60 10 10 2000 2 3 4 5 0 0
cpu1 40 10 20 2000 3 3 3 3 0 0
cpu10 900 900 900 0 0 0 0 900 0 0
intr 12345
"""


def snapshot(wall_s: float, busy_s: float, own_s: float, steal_s: float = 0.0) -> CpuSnapshot:
    return CpuSnapshot(wall_s=wall_s, busy_s=busy_s, steal_s=steal_s, own_s=own_s, client_s=own_s / 2)


def test_only_the_watched_cores_count_and_interrupts_do_not() -> None:
    assert parse_core_ticks(PROC_STAT, [0]) == (80, 5)
    assert parse_core_ticks(PROC_STAT, [0, 1]) == (150, 8)


def test_a_missing_core_is_named() -> None:
    with pytest.raises(ValueError, match="cpu2"):
        parse_core_ticks(PROC_STAT, [0, 2])


def stat_line(pid: int, parent_pid: int, *, ticks: int = 0, started: int = 0) -> str:
    times = f"{ticks} 0 0 0"
    return f"{pid} (ray::a (b) c) S {parent_pid} 9 9 0 -1 4194560 10 0 0 0 {times} 20 0 5 0 {started} 0 0"


def test_process_stat_with_brackets_and_spaces_in_the_name() -> None:
    text = "42 (ray::a (b) c) S 7 42 42 0 -1 4194560 10 0 0 0 11 22 33 44 20 0 5 0 987 0 0"
    assert parse_process_cpu(text) == ProcessCpu(parent_pid=7, ticks=11 + 22 + 33 + 44, started_ticks=987)


def test_what_is_not_ours_is_foreign_and_steal_counts() -> None:
    usage = usage_between(snapshot(0.0, 100.0, 10.0), snapshot(10.0, 120.0, 26.0, steal_s=1.0))
    assert usage.own_cores == pytest.approx(1.6)
    assert usage.client_cores == pytest.approx(0.8)
    assert usage.foreign_cores == pytest.approx(0.4 + 0.1)


def test_sampling_noise_does_not_make_foreign_use_negative() -> None:
    usage = usage_between(snapshot(0.0, 100.0, 10.0), snapshot(1.0, 101.0, 11.5))
    assert usage.foreign_cores == 0.0


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        usage_between(snapshot(1.0, 1.0, 1.0), snapshot(1.0, 1.0, 1.0))


def write_process(
    proc: Path, pid: int, parent_pid: int, environment: bytes = b"", started: int = 0
) -> None:
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "environ").write_bytes(environment)
    (folder / "stat").write_text(stat_line(pid, parent_pid, started=started))


def test_the_marker_finds_daemons_and_descent_those_that_renamed_themselves(tmp_path: Path) -> None:
    proc = tmp_path
    write_process(proc, 5, 1, b"A=1\0EXPERTMESH_BENCHMARK_RUN=run7\0")
    write_process(proc, 6, 5, b"ray::router")
    write_process(proc, 7, 6)
    write_process(proc, 8, 1, b"A=1\0")
    write_process(proc, 9, 1, b"EXPERTMESH_BENCHMARK_RUN=run77\0")
    (proc / "10").mkdir()
    (proc / "self").mkdir()
    assert CpuWatch("run7", [0], proc).own_pids() == [5, 6, 7]


def test_a_process_once_seen_stays_ours_until_its_id_is_reused(tmp_path: Path) -> None:
    write_process(tmp_path, 5, 1, b"EXPERTMESH_BENCHMARK_RUN=run7")
    write_process(tmp_path, 6, 5, started=100)
    watch = CpuWatch("run7", [0], tmp_path)
    assert watch.own_pids() == [5, 6]
    for file in ("stat", "environ"):
        (tmp_path / "5" / file).unlink()
    write_process(tmp_path, 6, 1, started=100)
    assert watch.own_pids() == [6]
    write_process(tmp_path, 6, 1, started=200)
    assert watch.own_pids() == []


BURN_S = 0.3
BURNING_CHILD = f"""
import time
print("up", flush=True)
input()
end_s = time.process_time() + {BURN_S}
while time.process_time() < end_s:
    pass
print("burnt", flush=True)
input()
"""


def test_the_time_of_a_busy_child_is_ours() -> None:
    watch = CpuWatch("test-run", [min(os.sched_getaffinity(0))])
    with subprocess.Popen(
        [sys.executable, "-c", BURNING_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdout.readline()
            assert child.pid in watch.own_pids()
            start = watch.snapshot()
            print(file=child.stdin, flush=True)
            child.stdout.readline()
            end = watch.snapshot()
            # Both are counted in whole ticks of the system's clock.
            assert end.own_s - start.own_s >= BURN_S - 2 / os.sysconf("SC_CLK_TCK")
            assert usage_between(start, end).own_cores > 0
        finally:
            child.kill()
