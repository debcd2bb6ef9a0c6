"""What the processes of a deployment listen on, and that strangers get nowhere with it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pytest
import ray
from serve_cluster import pid_of
from sockets import EVERYWHERE, listening

from expertmesh.actors.coordinator_access import (
    NAMESPACE,
    actor_name,
    coordinator_address,
    coordinator_stub,
    trust_of,
)
from expertmesh.cluster.trust.secret import HeldSecret
from expertmesh.cluster.trust.trust import SESSION, Trust
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc as rpc

if TYPE_CHECKING:
    from conftest import Operated

pytestmark = pytest.mark.xdist_group("operations")

CALL_S = 10.0


def test_our_sockets_are_on_the_nodes_own_address_alone(operated: Operated) -> None:
    config = operated.admin.config
    [gateway] = operated.admin.replica_pids("gateway")
    ours = {pid for name in ("router", "experts") for pid in operated.admin.replica_pids(name)}
    ours.add(pid_of(actor_name(config.name), NAMESPACE))
    [node] = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    found = listening()
    mine = [port for pid, address, port in found if pid in ours and address == node]
    # The router's streams and store, the probes of router and hosts, and the coordinator.
    assert len(mine) >= 6, found
    everywhere = Counter(pid for pid, address, _ in found if address in EVERYWHERE)
    # Ray's and Serve's own servers in its processes: the gateway has no others.
    assert all(everywhere[pid] <= everywhere[gateway] for pid in ours), found


def test_strangers_reach_neither_coordinator_nor_router(operated: Operated) -> None:
    config = operated.admin.config
    state = operated.admin.state()
    [router] = [m.stream_address for m in state.generation.members if m.role == pb.ROLE_ROUTER]
    coordinator = coordinator_address(config.name)

    async def codes() -> list[grpc.StatusCode]:
        found = []
        for address in (coordinator, router):
            async with grpc.aio.insecure_channel(address) as channel:
                calls = (
                    rpc.CoordinatorStub(channel).GetState(pb.GetStateRequest(), timeout=CALL_S),
                    rpc.RouterStreamStub(channel).Session(timeout=CALL_S),
                )
                call = calls[address == router]
                try:
                    await (call.read() if address == router else call)
                    found.append(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    found.append(error.code())
        return found

    assert asyncio.run(codes()) == [grpc.StatusCode.UNAVAILABLE] * 2  # there is no TLS on their side


def test_who_has_a_certificate_and_not_the_secret_is_refused(operated: Operated) -> None:
    config = operated.admin.config
    with coordinator_stub(config) as coordinator:
        state = coordinator.GetState(pb.GetStateRequest(), timeout=CALL_S)
    [router] = [m.stream_address for m in state.generation.members if m.role == pb.ROLE_ROUTER]
    certified = trust_of(config.security, HeldSecret())
    trust = Trust(lambda: ("not the secret of this cluster",), certified.tls)

    async def code() -> grpc.StatusCode:
        async with trust.channel(router) as channel:
            call = rpc.RouterStreamStub(channel).Session(
                timeout=CALL_S, metadata=trust.metadata(SESSION, router)
            )
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    assert asyncio.run(code()) is grpc.StatusCode.UNAUTHENTICATED
