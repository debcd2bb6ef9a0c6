"""Accounting of processor use: what is ours, what is foreign."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving_bench.processors import (
    MARKER_VARIABLE,
    CpuSnapshot,
    CpuWatch,
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


def test_process_stat_with_brackets_and_spaces_in_the_name() -> None:
    text = "42 (ray::a (b) c) S 7 42 42 0 -1 4194560 10 0 0 0 11 22 33 44 20 0 5 0 100 0 0"
    process = parse_process_cpu(text)
    assert (process.parent_pid, process.ticks) == (7, 11 + 22 + 33 + 44)


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


def test_the_marker_finds_grandchildren_and_dead_processes_do_not_matter(tmp_path: Path) -> None:
    for pid, environment in (("5", b"A=1\0EXPERTMESH_BENCHMARK_RUN=run7\0"), ("6", b"A=1\0"), ("7", b"")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "environ").write_bytes(environment)
    (tmp_path / "8").mkdir()
    (tmp_path / "self").mkdir()
    assert CpuWatch("run7", [0], tmp_path).own_pids() == [5]


def test_a_busy_child_is_ours_while_it_runs_and_an_unmarked_one_is_foreign() -> None:
    core = min(os.sched_getaffinity(0))
    watch = CpuWatch("test-run", [core])
    burn = "import time; end = time.time() + 30; print('up', flush=True)\nwhile time.time() < end: pass"
    for marked in (True, False):
        environment = {**os.environ, **({MARKER_VARIABLE: "test-run"} if marked else {})}
        child = subprocess.Popen([sys.executable, "-c", burn], env=environment, stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            assert watch.own_pids() == ([child.pid] if marked else [])
            start = watch.snapshot()
            # Not synchronisation: the window over which use is averaged.
            time.sleep(0.3)
            usage = usage_between(start, watch.snapshot())
            assert (usage.own_cores > 0.1) == marked
        finally:
            child.kill()
            child.communicate()
