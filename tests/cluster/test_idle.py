"""A deployment that nobody calls leaves the processor alone."""

from __future__ import annotations

import asyncio
import time

from serve_clients import Answer, Call
from serve_cluster import Deployment, cpu_s, pid_of

from expertmesh.actors.coordinator import NAMESPACE, actor_name

QUIET_S = 10.0
CORE_SHARE = 0.05
N_WINDOWS = 3
CALL = Call(prompt=(5, 6, 7), max_tokens=20)


def generate(deployment: Deployment) -> Answer:
    async def over_grpc() -> Answer:
        async with deployment.clients() as clients:
            return await clients.grpc_whole(CALL)

    return asyncio.run(over_grpc())


def test_an_idle_deployment_uses_less_than_a_twentieth_of_a_core(deterministic_1x2: Deployment) -> None:
    before = generate(deterministic_1x2)
    pids = processes(deterministic_1x2)
    # On a loaded machine, waking up costs more: the best of a few windows tells.
    for _ in range(N_WINDOWS):
        share, used_s = measure(pids)
        if share < CORE_SHARE:
            break
    assert share < CORE_SHARE, used_s
    assert generate(deterministic_1x2) == before


def processes(deployment: Deployment) -> dict[str, int]:
    """Every process of the application: gateway, router, hosts, coordinator."""
    pids = {
        f"{name} {pid}": pid
        for name in ("gateway", "router", "experts")
        for pid in deployment.replica_pids(name)
    }
    pids["coordinator"] = pid_of(actor_name(deployment.config.name), NAMESPACE)
    topology = deployment.topology()
    assert {member.pid for member in (*topology.routers, *topology.experts)} < set(pids.values())
    assert len(pids) == 1 + 1 + 2 + 1
    return pids


def measure(pids: dict[str, int]) -> tuple[float, dict[str, float]]:
    """Over a quiet window: the share of one core that all use together, and the seconds of each."""
    begun_s = time.monotonic()
    used_s = {name: -cpu_s(pid) for name, pid in pids.items()}
    # Not a synchronisation: the quiet is what is measured.
    time.sleep(QUIET_S)
    for name, pid in pids.items():
        used_s[name] += cpu_s(pid)
    return sum(used_s.values()) / (time.monotonic() - begun_s), used_s
