"""Finding and ending processes below one."""

from __future__ import annotations

import subprocess
import sys

from expertmesh.cli import processes

# A child that starts a grandchild and tells its id.
FAMILY = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"


def test_descendants_are_found_at_any_depth_and_ended():
    child = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    try:
        grandchild = int(child.stdout.readline())
        found = processes.descendants()
        family = frozenset(p for p in found if p.pid in (child.pid, grandchild))
        assert {p.pid for p in family} == {child.pid, grandchild}
        assert processes.end(family, patience_s=0.1) == 2
        assert processes.end(family, patience_s=10) == 0, "they are gone"
        assert not any(p.alive for p in family)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_process_with_the_same_id_that_began_at_another_time_is_another():
    child = subprocess.Popen(["sleep", "600"])
    try:
        [known] = [p for p in processes.descendants() if p.pid == child.pid]
        assert known.alive
        assert not processes.Process(known.pid, known.start_ticks + 1).alive
    finally:
        child.kill()
        child.wait()
