"""What the exchange costs: headers, and dispatch plus combine of one MoE layer, without experts.

    python benchmarks/exchange.py [--rounds 3] [--output benchmarks/results/exchange.json]

Every layout runs on Unix sockets (`local`) and on gloo, in turns; a figure is the median over the
rounds of the mean over a hundred layers. The hosts answer with the rows that they got.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from serving_bench.machine import describe_machine
from torch import Tensor

from expertmesh.engine.exchange.header import StepAgreement, StepHeader
from expertmesh.engine.exchange.host import HostExchange
from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.rendezvous import Store, Transport, build_communicator
from expertmesh.engine.exchange.rows import RowFormat
from expertmesh.engine.exchange.sharded import ShardedExchange

LOOPBACK = "127.0.0.1"
LAYOUTS = [(1, 1), (1, 2), (2, 3)]
TOKENS = [1, 8, 32, 512]
TRANSPORTS: list[Transport] = ["local", "gloo"]
HIDDEN, TOP_K, N_EXPERTS = 1024, 4, 32
REPEATS = 100


class Echo:
    """Experts that give back their input."""

    def forward(self, moe_layer: int, x_RD: Tensor, rows_per_slot: Sequence[int]) -> Tensor:
        return x_RD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    figures: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(options.rounds):
        for layout in LAYOUTS:
            for transport in TRANSPORTS:
                for what, seconds in _run(layout, transport).items():
                    figures.setdefault((f"{layout[0]}x{layout[1]}", what, transport), []).append(seconds)
    medians = {key: statistics.median(values) * 1e6 for key, values in figures.items()}
    _print(medians)
    if options.output:
        rows = [
            {"layout": layout, "what": what, "transport": transport, "us": round(us, 1)}
            for (layout, what, transport), us in medians.items()
        ]
        machine = describe_machine(os.sched_getaffinity(0), Path(__file__).parents[1])
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(
            json.dumps({"machine": asdict(machine), "figures": rows}, indent=1) + "\n"
        )


def _run(layout: tuple[int, int], transport: Transport) -> dict[str, float]:
    """Seconds on router 0, by what was measured."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    store = Store(LOOPBACK)
    results: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(rank, layout, transport, store.address, results))
        for rank in range(sum(layout))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    figures: dict[str, float] = results.get()
    return figures


def _rank(rank: int, layout: tuple[int, int], transport: Transport, address: str, results: Any) -> None:
    torch.set_num_threads(1)
    n_routers, n_hosts = layout
    names = [f"R{r}" for r in range(n_routers)] + [f"E{h}" for h in range(n_hosts)]
    communicator = build_communicator(
        generation=1,
        rank=rank,
        members=names,
        store_address=address,
        host=LOOPBACK,
        device=torch.device("cpu"),
        transport=transport,
        prepare_s=60,
        collective_s=60,
        abandoned=lambda: None,
    )
    slots = tuple(tuple(range(h, N_EXPERTS, n_hosts)) for h in range(n_hosts))
    ranks = RankLayout(1, n_routers, (slots,), tuple(names))
    rows = RowFormat(HIDDEN, TOP_K, torch.bfloat16)
    figures: dict[str, float] = {}

    def timed(what: str, body: Any) -> None:
        body()
        communicator.all_gather([0])
        started_s = time.perf_counter()
        for _ in range(REPEATS):
            body()
        figures[what] = (time.perf_counter() - started_s) / REPEATS

    timed("headers", lambda: communicator.all_gather(StepHeader(1, 0).encode()))
    for n_tokens in TOKENS:
        header = [StepHeader(1, 0, tokens=n_tokens)] * n_routers + [StepHeader(1, 0)] * n_hosts
        agreement = StepAgreement(tuple(header))
        what = f"layer, {n_tokens} tokens a router"
        if rank < n_routers:
            exchange = ShardedExchange(communicator, ranks, rows, n_experts=N_EXPERTS, n_moe_layers=1)
            x_TD = torch.randn(n_tokens, HIDDEN).bfloat16()
            ids_TK = torch.rand(n_tokens, N_EXPERTS).topk(TOP_K).indices
            weights_TK = torch.ones(n_tokens, TOP_K)

            def layer(
                e: Any = exchange, a: Any = agreement, x: Any = x_TD, ids: Any = ids_TK, w: Any = weights_TK
            ) -> None:
                e.begin(a)
                e.combine(e.dispatch(0, x, ids), w)

            timed(what, layer)
        else:
            host = HostExchange(communicator, ranks, rows, [Echo()])
            host.begin(agreement)
            timed(what, lambda h=host: h.serve(h.due[0]))
    communicator.all_gather([0])
    if rank == 0:
        results.put(figures)
    communicator.close()


def _print(medians: dict[tuple[str, str, str], float]) -> None:
    table = Table("layout", "what", *(f"{t} us" for t in TRANSPORTS), "gloo / local")
    for layout, what in dict.fromkeys((layout, what) for layout, what, _ in medians):
        local_us, gloo_us = (medians[layout, what, t] for t in TRANSPORTS)
        table.add_row(layout, what, f"{local_us:.0f}", f"{gloo_us:.0f}", f"{gloo_us / local_us:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
