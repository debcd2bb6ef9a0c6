"""`expertmesh scale` and `expertmesh rebalance`: change a running deployment, and see it done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from rich.console import Console

from expertmesh.cli import display
from expertmesh.cli.endpoint import Endpoint
from expertmesh.cli.errors import CliError
from expertmesh.cli.progress import Progress
from expertmesh.proto.v1 import inference_pb2 as pb

POLL_S = 0.25
CALL_S = 40.0
"""For one call: longer than the gateway waits for the coordinator."""


def run_scale(
    address: str,
    app: str | None,
    what: str,
    n_replicas: int,
    *,
    wait: bool,
    timeout_s: float,
    as_json: bool,
    console: Console,
    key: str = "",
) -> None:
    """`expertmesh scale`, once its options are parsed.

    Raises:
        CliError: refused, or not done within `timeout_s`; the message says why.
    """
    started_s = time.monotonic()
    topology = None
    with Endpoint(address, app, key) as endpoint:
        before = endpoint.scale(what, n_replicas, min(timeout_s, CALL_S))
        if wait:
            with Progress(Console(stderr=True) if as_json else console) as progress:
                topology = wait_until_scaled(endpoint, what, n_replicas, timeout_s, progress.show)
    seconds = time.monotonic() - started_s
    if as_json:
        report: dict[str, object] = {"what": what, "replicas_before": before, "replicas": n_replicas}
        if topology is not None:
            report |= {"generation": topology.generation, "seconds": round(seconds, 3)}
        console.file.write(json.dumps(report) + "\n")
        return
    change = f"{what}: {before} -> {n_replicas}"
    if topology is None:
        text = f"{change}, accepted; `expertmesh status` shows how far it is"
    else:
        text = f"{change}, done in {seconds:.1f} s (generation {topology.generation})"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def wait_until_scaled(
    endpoint: Endpoint, what: str, n_replicas: int, timeout_s: float, show: Callable[[str], None]
) -> pb.Topology:
    """The topology in which a live generation has `n_replicas` of `what`.

    Raises:
        CliError: there was none within `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    text = "no topology was told"
    while True:
        topology = topology_or_none(endpoint, timeout_s)
        if topology is not None:
            members = topology.routers if what == "routers" else topology.experts
            if topology.state == "running" and len(members) == n_replicas:
                return topology
            text = display.scaling_line(topology, what, n_replicas)
            show(text)
        if time.monotonic() >= deadline_s:
            raise CliError(f"not done within {timeout_s:g} s, and not given up: {text}")
        time.sleep(POLL_S)


def run_rebalance(
    address: str, app: str | None, timeout_s: float, as_json: bool, console: Console, key: str = ""
) -> None:
    """`expertmesh rebalance`, once its options are parsed.

    Raises:
        CliError: refused; the message says why.
    """
    with Endpoint(address, app, key) as endpoint:
        answer = endpoint.rebalance(timeout_s)
    if as_json:
        report = {"begun": answer.begun, "imbalance": round(answer.imbalance, 4)}
        console.file.write(json.dumps(report) + "\n")
        return
    load = display.imbalance_text(answer.imbalance)
    if answer.begun:
        text = f"experts are being moved: {load}; `expertmesh status` shows how far it is"
    else:
        text = f"nothing is moved, the placement is as good as it gets: {load}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def topology_or_none(endpoint: Endpoint, timeout_s: float) -> pb.Topology | None:
    """What is told now; None while nobody answers."""
    try:
        return endpoint.topology(min(timeout_s, CALL_S))
    except CliError:
        return None  # the gateway that was asked may just be replaced
