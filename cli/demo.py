"""`expertmesh demo`: the demo checkpoint on this machine, and one generation to look at."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from expertmesh.cli.display import host_shares
from expertmesh.cli.endpoint import Endpoint
from expertmesh.cli.generate import stream
from expertmesh.cli.supervisor import Stop
from expertmesh.proto.v1 import inference_pb2 as pb

PROMPT = "The SELECT statement is used to"
PARAMS = pb.SamplingParams(max_tokens=160, temperature=0.7, top_p=0.95, seed=7)
GENERATE_S = 120.0
TOPOLOGY_S = 5.0
SETTLE_S = 8.0
"""Members report their load about once a second; the figures are final when two answers agree."""
SETTLE_POLL_S = 1.5


def show_generation(console: Console) -> Callable[[Endpoint, Stop], None]:
    """What the demo does once a generation is live: streams text, then tells who computed it."""

    def show(endpoint: Endpoint, stop: Stop) -> None:
        before = endpoint.topology(TOPOLOGY_S)
        console.print("[bold]One generation through gRPC[/]")
        console.print(PROMPT, style="bold cyan", end="", highlight=False)

        def write(text: str) -> None:
            stop.check()
            console.out(text, end="", highlight=False)
            console.file.flush()

        request = pb.GenerateRequest(prompt=PROMPT, params=PARAMS)
        generation = stream(endpoint, request, GENERATE_S, write)
        console.print()
        console.print()
        console.print(generation.summary(), highlight=False)
        after = _settled(endpoint, before, stop)
        for rank, rows, share in host_shares(before.experts, after.experts):
            console.print(
                f"expert host of rank {rank}: {100 * share:.1f} % ({rows:,} token-expert pairs)",
                highlight=False,
            )
        console.print()

    return show


def _settled(endpoint: Endpoint, before: pb.Topology, stop: Stop) -> pb.Topology:
    """The topology once the load of the generation has been reported in full."""
    deadline_s = time.monotonic() + SETTLE_S
    last = before
    while True:
        stop.pause(SETTLE_POLL_S)
        now = endpoint.topology(TOPOLOGY_S)
        settled = _tokens(now) == _tokens(last) != _tokens(before)
        if settled or not now.experts or time.monotonic() > deadline_s:
            return now
        last = now


def _tokens(topology: pb.Topology) -> list[int]:
    return [member.tokens for member in topology.experts]
