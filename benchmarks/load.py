"""What loading experts takes: a host's share, all of them, and what a change of scale lacks.

    python benchmarks/load.py [--checkpoint FOLDER] [--rounds 3] [--output benchmarks/results/load.json]

A first load uses all compute threads; a change is loaded as beside decoding: on one thread of low
priority. Files come from the page cache. A figure is the median over the rounds. Changes are those of
the busiest host: the one that reads most.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from serving_bench.machine import describe_machine

from expertmesh.cluster.placement.interface import HostSlots
from expertmesh.cluster.placement.planner import ExpertPlacer
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.expert_store import ExpertStore

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "benchmarks" / "checkpoints" / "bench"
CHANGES = [(2, 4), (4, 2), (1, 2), (2, 1)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

HostShare = tuple[tuple[int, ...], ...]
"""For each MoE layer the experts of one host."""


@dataclass(frozen=True, slots=True)
class LoadCase:
    """One load, with what the host holds before it."""

    what: str
    held: HostShare
    wanted: HostShare
    background: bool
    """As beside decoding."""

    @property
    def n_missing(self) -> int:
        """Experts that have to be read."""
        return sum(len(set(new) - set(old)) for old, new in zip(self.held, self.wanted, strict=True))


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """A load, measured."""

    what: str
    experts: int
    """Read, over all layers."""
    mib: float
    """Read from the checkpoint."""
    seconds: float
    mib_per_s: float


def main() -> None:
    """Measures, prints a table, and writes the figures where told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = Checkpoint.open(options.checkpoint)
    cases = load_cases(len(checkpoint.spec.moe_layers), checkpoint.spec.n_experts)
    rounds = [[measure(checkpoint, case) for case in cases] for _ in range(options.rounds)]
    figures = [median(of_case) for of_case in zip(*rounds, strict=True)]
    print_table(Console(), figures)
    if options.output:
        machine = describe_machine(os.sched_getaffinity(0), REPOSITORY)
        content = {
            "machine": asdict(machine),
            "checkpoint": options.checkpoint.name,
            "threads": options.threads,
            "figures": [asdict(f) for f in figures],
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(content, indent=1) + "\n")


def load_cases(n_layers: int, n_experts: int) -> list[LoadCase]:
    """First loads of one host among 1, 2 and 4, then what changes of scale lack."""
    placer = ExpertPlacer(n_layers, n_experts)

    def shares(hosts: Sequence[HostSlots], *, staged: bool) -> list[HostShare]:
        layers = placer(hosts, rebalance=False, staged=staged).placement.layers
        return [tuple(layer[host] for layer in layers) for host in range(len(hosts))]

    def placed(n_hosts: int) -> list[HostShare]:
        return shares([HostSlots("node")] * n_hosts, staged=False)

    nothing: HostShare = ((),) * n_layers
    names = {1: "all experts (1x1)", 2: "share of 1x2", 4: "share of 1x4"}
    cases = [LoadCase(name, nothing, placed(n)[0], background=False) for n, name in names.items()]
    for before, after in CHANGES:
        old = [*placed(before), *[nothing] * (after - before)]
        hosts = [
            HostSlots("node", staying=host < after, held=share if host < before else ())
            for host, share in enumerate(old)
        ]
        new = shares(hosts, staged=True)
        changed = [
            LoadCase(f"change {before} -> {after}", *pair, background=True)
            for pair in zip(old, new, strict=True)
        ]
        cases.append(max(changed, key=lambda case: case.n_missing))
    return cases


def measure(checkpoint: Checkpoint, case: LoadCase) -> LoadFigures:
    """One load, into a store that holds what the case says and nothing else."""
    spec = checkpoint.spec
    store = ExpertStore(
        checkpoint, spec, mode=ComputeMode(), dtype=DTYPES[spec.dtype], device=torch.device("cpu")
    )
    # The bank is kept until the end, so that what it holds is shared.
    held = store.bank(case.held)
    before_bytes = checkpoint.bytes_read
    started_s = time.perf_counter()
    bank = store.bank(case.wanted, background=case.background)
    seconds = time.perf_counter() - started_s
    mib = (checkpoint.bytes_read - before_bytes) / 2**20
    del held, bank
    return LoadFigures(case.what, case.n_missing, mib, seconds, mib / seconds)


def median(figures: Sequence[LoadFigures]) -> LoadFigures:
    """The round in the middle, by its time."""
    return sorted(figures, key=lambda f: f.seconds)[(len(figures) - 1) // 2]


def print_table(console: Console, figures: Sequence[LoadFigures]) -> None:
    """One line a case."""
    table = Table("load", "experts", "MiB", "seconds", "MiB/s")
    for f in figures:
        table.add_row(f.what, str(f.experts), f"{f.mib:.1f}", f"{f.seconds:.3f}", f"{f.mib_per_s:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
