"""The benchmark of loading experts, on the demo checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from expertmesh.models.checkpoint import check_checkpoint

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "load.py"


def test_every_load_reads_what_is_missing(demo_checkpoint: Path, tmp_path: Path) -> None:
    spec = check_checkpoint(demo_checkpoint)
    output = tmp_path / "load.json"
    options = ["--checkpoint", str(demo_checkpoint), "--rounds", "1", "--threads", "1"]
    subprocess.run([sys.executable, str(SCRIPT), *options, "--output", str(output)], check=True)
    figures = {f["what"]: f for f in json.loads(output.read_text())["figures"]}
    n_experts = spec.n_experts * len(spec.moe_layers)
    read = {what: f["experts"] for what, f in figures.items()}
    assert read == {
        "all experts (1x1)": n_experts,
        "share of 1x2": n_experts // 2,
        "share of 1x4": n_experts // 4,
        "change 2 -> 4": n_experts // 4,
        "change 4 -> 2": n_experts // 4,
        "change 1 -> 2": n_experts // 2,
        "change 2 -> 1": n_experts // 2,
    }
    one_mib = figures["all experts (1x1)"]["mib"] / n_experts
    for figure in figures.values():
        assert abs(figure["mib"] - figure["experts"] * one_mib) < 1e-6
        assert figure["seconds"] > 0
