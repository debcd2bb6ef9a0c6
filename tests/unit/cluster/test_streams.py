"""Coordinator and member clients over real gRPC sockets, in one process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc.aio
from contiguous_placer import ContiguousPlacer
from fake_member import WAIT_S, FakeMember, member_info

from expertmesh.cluster.coordinator import Coordinator
from expertmesh.cluster.load import Load
from expertmesh.cluster.placement.contiguous import contiguous_placement
from expertmesh.cluster.state import LEFT_AS_ASKED, MembershipRules
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc

N_LAYERS, N_EXPERTS = 2, 5


class Deployment:
    """A coordinator that can be killed and started again, and the members that look for it."""

    def __init__(self, n_routers: int, n_experts: int, deadline_s: float = 10.0) -> None:
        self.rules = MembershipRules(
            n_routers, n_experts, deadline_s, report_s=0.5, prepare_s=10.0, announce_s=0.5, retry_s=0.1
        )
        self.address = ""
        self.coordinator: Coordinator | None = None
        self.members: list[FakeMember] = []
        self.killed: list[str] = []

    async def start(self) -> None:
        self.coordinator = Coordinator(
            self.rules,
            ContiguousPlacer(N_LAYERS, N_EXPERTS),
            kill=lambda member: self.killed.append(member.incarnation),
        )
        self.address = await self.coordinator.start("127.0.0.1")

    async def stop(self) -> None:
        assert self.coordinator is not None
        await self.coordinator.stop()
        self.address = ""

    async def find(self) -> str:
        if not self.address:
            raise ConnectionError("no coordinator")
        return self.address

    async def join(self, name: str) -> FakeMember:
        fake = FakeMember(member_info(name), self.find)
        self.members.append(fake)
        await fake.client.start(fake)
        return fake

    async def until_killed(self, *names: str) -> None:
        """Waits for the threads on which processes are killed."""
        async with asyncio.timeout(WAIT_S):
            while self.killed != list(names):
                await asyncio.sleep(0.01)

    async def state(self) -> pb.TopologyUpdate:
        async with grpc.aio.insecure_channel(self.address) as channel:
            return await internal_pb2_grpc.CoordinatorStub(channel).GetState(pb.GetStateRequest())


@asynccontextmanager
async def deployment(n_routers: int, n_experts: int, deadline_s: float = 10.0) -> AsyncIterator[Deployment]:
    d = Deployment(n_routers, n_experts, deadline_s)
    await d.start()
    try:
        yield d
    finally:
        for fake in d.members:
            await fake.client.close()
        await d.stop()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_first_generation_wakes_and_counts() -> None:
    async def scenario() -> None:
        async with deployment(1, 2) as d:
            gateway = await d.join("g0")
            await gateway.until(lambda: gateway.topologies[-1:] != [])
            assert gateway.topologies[-1].state == "waiting"
            assert "0 of at least 1 routers" in gateway.topologies[-1].reason
            e0 = await d.join("e0")
            r0 = await d.join("r0")
            e1 = await d.join("e1")
            for m in (r0, e0, e1):
                await m.until(lambda m=m: m.live == 1)
            generation = r0.generations[-1]
            r0_at = replace(member_info("r0"), probe_address=generation.members[0].probe_address)
            assert generation.members[0] == r0_at
            assert generation == e0.generations[-1] == e1.generations[-1]
            assert generation.store_address == "r0:2"
            assert generation.placement == contiguous_placement(N_LAYERS, N_EXPERTS, 2)
            await gateway.until(lambda: gateway.topologies[-1].state == "running")
            assert [m.stream_address for m in gateway.topologies[-1].generation.members] == ["r0:1", "", ""]

            r0.client.wake_request(1, 1)
            r0.client.wake_request(1, 1)
            r0.client.wake_request(1, 3)
            await e1.until(lambda: e1.epochs == [(1, 1)])
            r0.client.wake_request(1, 2)
            await e1.until(lambda: e1.epochs == [(1, 1), (1, 2)])

            r0.client.report_load(
                Load(
                    7,
                    tuple(range(10)),
                    decode_steps=2,
                    decode_part_ms={"gate": 0.5},
                    cache_blocks=100,
                    cache_blocks_used=9,
                    loaded_bytes=5,
                    total_bytes=6,
                )
            )
            e0.client.report_load(Load(tokens=3, loaded_bytes=10, total_bytes=20))
            gateway.client.report_load(Load(outstanding_requests=4))
            async with asyncio.timeout(WAIT_S):
                while (state := await d.state()).outstanding_requests != 4 or 7 not in state.tokens:
                    await asyncio.sleep(0.05)
            assert state.decode_profiles[0].steps == 2
            assert dict(state.decode_profiles[0].part_ms) == {"gate": 0.5}
            assert (list(state.cache_blocks), list(state.cache_blocks_used)) == ([100, 0, 0], [9, 0, 0])
            assert list(state.expert_rows) == list(range(10))
            assert (state.loaded_bytes, state.total_bytes) == (15, 26)
            assert (await gateway.client.get_state()).tokens == state.tokens

    run(scenario)


def test_a_lost_host_makes_a_new_generation() -> None:
    async def scenario() -> None:
        async with deployment(1, 2) as d:
            r0, e0, e1 = [await d.join(n) for n in ("r0", "e0", "e1")]
            await r0.until(lambda: r0.live == 1)
            await e1.client.close()
            await r0.until(lambda: r0.live == 2)
            await e0.until(lambda: e0.live == 2)
            assert r0.generations[-1].placement == contiguous_placement(N_LAYERS, N_EXPERTS, 1)
            await d.join("e2")
            await r0.until(lambda: r0.live == 3)
            assert r0.generations[-1].n_experts == 2

    run(scenario)


def test_silence_and_refusal_to_leave_exclude() -> None:
    async def scenario() -> None:
        async with deployment(1, 3, deadline_s=1.0) as d:
            r0, e0, e1, e2 = [await d.join(n) for n in ("r0", "e0", "e1", "e2")]
            await e0.until(lambda: e0.live == 1)
            # e1 does not leave generation 1 when e2 dies: out after report_s.
            e1.mute_abandon = True
            await e2.client.close()
            await e1.until(lambda: e1.excluded is not None)
            assert "did not leave generation 1 within 0.5 s" in (e1.excluded or "")
            await r0.until(lambda: r0.live == 2)
            # A member whose stream stands but is silent: no heartbeat.
            async with grpc.aio.insecure_channel(d.address) as channel:
                call = internal_pb2_grpc.MembershipStub(channel).Join()
                hello = pb.Hello(role=pb.ROLE_EXPERTS, incarnation="silent", node="n", pid=1)
                await call.write(pb.MemberMessage(hello=hello))
                messages = [m async for m in call]
            assert "no heartbeat for 1 s" in messages[-1].excluded.reason
            # Who is out is killed; whose stream has ended is dead, or comes back.
            await d.until_killed("e1", "silent")
            # The change that would have taken it in was dropped, and harmed nobody.
            await r0.until(lambda: 3 in r0.abandoned)
            assert (r0.live, e0.live) == (2, 2)

    run(scenario)


def test_gateways_hear_how_many_share_the_limits_of_keys() -> None:
    async def scenario() -> None:
        async with deployment(1, 2) as d:
            first = await d.join("g0")
            await first.until(lambda: first.topologies != [])
            assert first.topologies[-1].gateways == 1
            second = await d.join("g1")
            await first.until(lambda: first.topologies[-1].gateways == 2)
            await second.until(lambda: second.topologies != [])
            assert second.topologies[0].gateways == 2
            await second.client.close()
            await first.until(lambda: first.topologies[-1].gateways == 1)

    run(scenario)


def test_who_was_out_stays_out() -> None:
    """A frozen process may have read nothing of it, and come back much later."""

    async def scenario() -> None:
        async with deployment(1, 2) as d:
            r0, e0, e1 = [await d.join(n) for n in ("r0", "e0", "e1")]
            await e0.until(lambda: e0.live == 1)
            e1.mute_abandon = True
            await e0.client.close()
            await e1.until(lambda: e1.excluded is not None)
            thawed = FakeMember(e1.info, d.find)
            d.members.append(thawed)
            await thawed.client.start(thawed)
            await thawed.until(lambda: thawed.excluded is not None)
            assert thawed.generations == []
            await d.until_killed("e1", "e1")
            assert r0.excluded is None

    run(scenario)


def test_a_coordinator_restart_stops_nothing() -> None:
    """Everybody goes on in the same generation, and says again what the old coordinator did not hear."""

    async def scenario() -> None:
        async with deployment(2, 1) as d:
            r0, r1, e0 = [await d.join(n) for n in ("r0", "r1", "e0")]
            gateway = await d.join("g0")
            for m in (r0, r1, e0):
                await m.until(lambda m=m: m.live == 1)
            await d.stop()
            assert r0.live == e0.live == 1
            r0.client.wake_request(1, 1)
            await d.start()
            for m in (r0, r1, e0):
                await m.until(lambda m=m: m.epochs == [(1, 1)])
            await gateway.until(lambda: gateway.topologies[-1].state == "running")
            assert gateway.topologies[-1].generation.number == 1
            assert [len(m.generations) for m in (r0, r1, e0)] == [1, 1, 1]
            await r1.client.close()
            for m in (r0, e0):
                await m.until(lambda m=m: m.live == 2)

    run(scenario)


def test_an_accusation_survives_the_coordinator() -> None:
    async def scenario() -> None:
        async with deployment(1, 2) as d:
            r0, e0, e1 = [await d.join(n) for n in ("r0", "e0", "e1")]
            for m in (r0, e0, e1):
                await m.until(lambda m=m: m.live == 1)
            await d.stop()
            e1.client.accuse(1, "a collective failed")
            await d.start()
            for m in (r0, e0, e1):
                await m.until(lambda m=m: m.live == 2)

    run(scenario)


def test_a_coordinator_restart_with_a_member_gone_goes_on_with_a_higher_number() -> None:
    async def scenario() -> None:
        async with deployment(2, 1) as d:
            r0, r1, e0 = [await d.join(n) for n in ("r0", "r1", "e0")]
            gateway = await d.join("g0")
            for m in (r0, r1, e0):
                await m.until(lambda m=m: m.live == 1)
            await d.stop()
            assert r0.live == e0.live == 1
            await r1.client.close()
            await d.start()
            for m in (r0, e0):
                await m.until(lambda m=m: m.live == 2)
            assert r0.generations[-1].n_routers == 1
            await gateway.until(lambda: gateway.topologies[-1].generation.number == 2)

    run(scenario)


def test_leaving_draining_and_desertion() -> None:
    async def scenario() -> None:
        async with deployment(1, 0) as d:
            assert d.coordinator is not None
            deserted = asyncio.create_task(d.coordinator.wait_until_deserted(0.2))
            r0, gateway = [await d.join(n) for n in ("r0", "g0")]
            await r0.until(lambda: r0.live == 1)
            assert r0.generations[-1].placement.n_hosts == 0
            async with grpc.aio.insecure_channel(d.address) as channel:
                stub = internal_pb2_grpc.CoordinatorStub(channel)
                await stub.BeginDrain(pb.BeginDrainRequest())
            await gateway.until(lambda: gateway.drains == 1 and gateway.topologies[-1].draining)
            r0.client.leave()
            await r0.until(lambda: r0.excluded == LEFT_AS_ASKED)
            await gateway.until(lambda: gateway.topologies[-1].state == "waiting")
            assert not deserted.done()
            await gateway.client.close()
            async with asyncio.timeout(WAIT_S):
                await deserted

    run(scenario)
