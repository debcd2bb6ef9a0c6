"""A deployment that nobody calls leaves the processor alone."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from typing import Any

import ray
from serve_clients import Answer, Call
from serve_cluster import SETTLE_S, Deployment, actor_names, cpu_s, pid_of

from expertmesh.actors.coordinator_access import NAMESPACE, actor_name

QUIET_S = 10.0
CORE_SHARE = 0.03
BARE = "bare"
N_WINDOWS = 3
CALL = Call(prompt=(5, 6, 7), max_tokens=20)


def generate(deployment: Deployment) -> Answer:
    async def over_grpc() -> Answer:
        async with deployment.clients() as clients:
            return await clients.grpc_whole(CALL)

    return asyncio.run(over_grpc())


def test_an_idle_deployment_leaves_the_processor_alone(deterministic_1x2: Deployment) -> None:
    """Its processes together use less than 3 % of a core beyond what as many bare actors use."""
    before = generate(deterministic_1x2)
    bare = bare_actor()
    pids = {**processes(deterministic_1x2), BARE: ray.get(bare.pid.remote())}
    # On a loaded machine, waking up costs more: the best of a few windows tells.
    for _ in range(N_WINDOWS):
        share, used_s = measure(pids)
        if share < CORE_SHARE:
            break
    assert share < CORE_SHARE, used_s
    assert generate(deterministic_1x2) == before


def test_what_a_process_started_with_is_not_looked_through_again(deterministic_1x2: Deployment) -> None:
    """A full collection would stop every thread of a router, and every stream, for a tenth of a second."""

    def objects(_: Any) -> tuple[int, int]:
        return gc.get_freeze_count(), len(gc.get_objects())

    application = deterministic_1x2.config.name
    named = [(name, "serve") for name in actor_names("serve") if f"::{application}#" in name]
    named.append((actor_name(application), NAMESPACE))
    assert len(named) == 1 + 1 + 2 + 1
    for name, namespace in named:
        actor = ray.get_actor(name, namespace=namespace)
        passed_over, looked_through = ray.get(actor.__ray_call__.remote(objects), timeout=SETTLE_S)
        assert passed_over > 3 * looked_through, name


def bare_actor() -> Any:
    """An actor that does nothing: what Ray itself spends on a process; it wakes it 100 times a second."""

    class Bare:
        async def pid(self) -> int:
            return os.getpid()

    return ray.remote(Bare).options(num_cpus=0).remote()


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
    """Over a quiet window: the share of one core that all use together beyond bare actors, and the seconds
    of each."""
    begun_s = time.monotonic()
    used_s = {name: -cpu_s(pid) for name, pid in pids.items()}
    # Not a synchronisation: the quiet is what is measured.
    time.sleep(QUIET_S)
    for name, pid in pids.items():
        used_s[name] += cpu_s(pid)
    beyond_s = sum(seconds - used_s[BARE] for seconds in used_s.values())
    return beyond_s / (time.monotonic() - begun_s), used_s
