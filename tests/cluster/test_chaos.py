"""A minute of chaos: processes are killed and stopped, and everything is scaled, under load of every kind.

The benchmark is the test: it has a Ray cluster of its own, and judges by itself (benchmarks/chaos.py).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"
SEED = 2321
"""Its first events are of the most kinds: losses in a change, of two at once, of the only host."""
FEWEST_REQUESTS = 50
SLOWEST_S, STOP_S = 480, 120


@pytest.mark.timeout(SLOWEST_S + STOP_S)
def test_a_minute_of_chaos_harms_nobody(tmp_path: Path) -> None:
    result_file = tmp_path / "chaos.json"
    # Its load takes what it gets: it leaves the cores to the tests beside.
    command = ["nice", "-n", "5", sys.executable, str(CHAOS), "--minutes", "1", "--seed", str(SEED)]
    with subprocess.Popen(
        [*command, "--json", str(result_file), "--log", str(tmp_path / "serve.log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=SLOWEST_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # so that it ends its cluster
            said, _ = process.communicate(timeout=STOP_S)
            pytest.fail(f"no end within {SLOWEST_S} s:\n{said}")
    assert process.returncode == 0, said
    result = json.loads(result_file.read_text())
    assert result["harms"] == result["faults"] == []
    assert result["finished"] >= FEWEST_REQUESTS
    # The slowest machine gets as far as the first losses.
    assert sum(result["events"].values()) >= 3
    first, last = result["looks"][0], result["looks"][-1]
    assert last["events"] > first["events"] == 0
