"""Processes die and freeze under load: no stream fails, and none differs by a token."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from serve_clients import Answer
from serve_cluster import Deployment, pid_of
from steady_calls import SteadyCalls, check, make_calls

from expertmesh.actors.coordinator_access import NAMESPACE, actor_name
from expertmesh.proto.v1 import inference_pb2 as pb

CALLS = make_calls(6, first_tokens=60, more_tokens=10)
N_ROUTERS, N_HOSTS = 2, 2
GONE_S = 60.0
LONG = 240

Victims = Callable[[Deployment, pb.Topology], list[int]]
"""The processes that are lost together."""


@pytest.fixture(scope="module")
def faults(deterministic_2x2: Deployment) -> Deployment:
    """Two of each, of which some are lost."""
    return deterministic_2x2


@pytest.fixture(scope="module")
def expected(faults: Deployment) -> list[list[int]]:
    """The tokens of every call when nothing happens."""
    faults.until_settled(N_ROUTERS, N_HOSTS)
    return SteadyCalls(faults, CALLS).alone()


def host(deployment: Deployment, topology: pb.Topology) -> list[int]:
    return [topology.experts[-1].pid]


def router(deployment: Deployment, topology: pb.Topology) -> list[int]:
    """The lowest, which the others meet through."""
    return [topology.routers[0].pid]


def host_and_router(deployment: Deployment, topology: pb.Topology) -> list[int]:
    return host(deployment, topology) + router(deployment, topology)


def all_hosts(deployment: Deployment, topology: pb.Topology) -> list[int]:
    return [member.pid for member in topology.experts]


def coordinator(deployment: Deployment, topology: pb.Topology) -> list[int]:
    return [pid_of(actor_name(deployment.config.name), NAMESPACE)]


def coordinator_and_host(deployment: Deployment, topology: pb.Topology) -> list[int]:
    return coordinator(deployment, topology) + host(deployment, topology)


@pytest.mark.parametrize(
    ("victims", "how"),
    [
        (host, signal.SIGKILL),
        (host, signal.SIGSTOP),
        (router, signal.SIGSTOP),
        (host_and_router, signal.SIGKILL),
        (all_hosts, signal.SIGKILL),
        (coordinator_and_host, signal.SIGKILL),
    ],
)
def test_who_is_lost_costs_no_stream_a_token(
    victims: Victims, how: signal.Signals, faults: Deployment, expected: list[list[int]]
) -> None:
    before = faults.until_settled(N_ROUTERS, N_HOSTS)
    lost = victims(faults, before)

    def strike() -> None:
        for pid in lost:
            os.kill(pid, how)
        after = faults.until(
            lambda t: t.generation > before.generation and t.state == "running", "a generation without them"
        )
        assert not set(lost) & {member.pid for member in (*after.routers, *after.experts)}

    check(SteadyCalls(faults, CALLS).during(strike), expected)
    # A stopped process does not hear that it is out: it is killed.
    for pid in lost:
        until_gone(pid)


def test_a_dead_coordinator_stops_nothing(faults: Deployment, expected: list[list[int]]) -> None:
    """The generation goes on, is adopted by the coordinator that Ray starts, and can be changed again."""
    before = faults.until_settled(N_ROUTERS, N_HOSTS)
    [lost] = coordinator(faults, before)

    def strike() -> None:
        os.kill(lost, signal.SIGKILL)
        until_gone(lost)
        after = faults.state()
        assert (after.state, after.generation.number) == ("running", before.generation)
        faults.scale_by_dashboard("experts", N_HOSTS + 1)
        faults.until_settled(N_ROUTERS, N_HOSTS + 1)
        faults.scale_by_dashboard("experts", N_HOSTS)
        faults.until_settled(N_ROUTERS, N_HOSTS)

    check(SteadyCalls(faults, CALLS).during(strike), expected)


def test_a_host_that_dies_while_others_join_costs_no_stream_a_token(
    faults: Deployment, expected: list[list[int]]
) -> None:
    before = faults.until_settled(N_ROUTERS, N_HOSTS)
    victim = before.experts[0].pid

    def strike() -> None:
        faults.scale_by_dashboard("experts", N_HOSTS + 1)
        # Where the change was too quick to be seen, the host dies just behind it.
        faults.until(
            lambda t: t.HasField("change") or len(t.experts) > N_HOSTS, "others join", poll_s=0.001
        )
        os.kill(victim, signal.SIGKILL)
        faults.until_settled(N_ROUTERS, N_HOSTS + 1)
        faults.scale_by_dashboard("experts", N_HOSTS)
        faults.until_settled(N_ROUTERS, N_HOSTS)

    check(SteadyCalls(faults, CALLS).during(strike), expected)


def test_a_dead_gateway_ends_its_own_streams_alone(faults: Deployment, expected: list[list[int]]) -> None:
    """Serve tells their clients; the routers free what they held, and new calls are answered."""
    faults.until_settled(N_ROUTERS, N_HOSTS)
    calls = [replace(CALLS[i % len(CALLS)], max_tokens=LONG) for i in range(12)]

    async def kill_one() -> list[Answer | BaseException]:
        flowing = asyncio.Event()

        def on_tokens(n_tokens: int) -> bool:
            flowing.set()
            return True

        async with faults.clients() as clients:
            streams = [asyncio.create_task(clients.grpc_stream(call, on_tokens)) for call in calls]
            async with asyncio.timeout(GONE_S):
                await flowing.wait()
            [victim, *_] = await asyncio.to_thread(faults.replica_pids, "gateway")
            os.kill(victim, signal.SIGKILL)
            return await asyncio.gather(*streams, return_exceptions=True)

    outcomes = asyncio.run(kill_one())
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, grpc.RpcError):
            assert outcome.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
        else:
            assert isinstance(outcome, Answer)
            assert len(outcome.token_ids) == LONG
            tokens = expected[i % len(CALLS)]
            assert outcome.token_ids[: len(tokens)] == tokens
    faults.until_quiet()
    faults.until(lambda t: not any(r.cache_blocks_used for r in t.routers), "the routers' blocks are free")
    check(SteadyCalls(faults, CALLS).during(lambda: None), expected)


def until_gone(pid: int) -> None:
    """Waits until a process is no more, or is a corpse that its parent has yet to bury."""
    deadline_s = time.monotonic() + GONE_S
    while (state := process_state(pid)) not in ("", "Z"):
        assert time.monotonic() < deadline_s, f"process {pid} is still there: {state}"
        time.sleep(0.05)


def process_state(pid: int) -> str:
    """The letter that Linux gives it; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
