"""A member that follows the coordinator's protocol without computing anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from expertmesh.cluster.member import FindCoordinator, MemberClient
from expertmesh.cluster.trust.trust import UNGUARDED, Trust
from expertmesh.cluster.types import Generation, MemberInfo, Role
from expertmesh.proto.v1 import internal_pb2 as pb

WAIT_S = 30.0


def member_info(name: str) -> MemberInfo:
    """A member by name; the first letter says its role: g, r or e."""
    role = {"g": Role.GATEWAY, "r": Role.ROUTER, "e": Role.EXPERTS}[name[0]]
    return MemberInfo(
        incarnation=name,
        role=role,
        node="node-1",
        pid=100,
        device="cpu",
        stream_address=f"{name}:1" if role is Role.ROUTER else "",
        store_address=f"{name}:2",
        replica_id=f"replica-{name}",
        probe_address="" if role is Role.GATEWAY else f"{name}:3",
    )


class FakeMember:
    """Follows the protocol as a router or host does, without computing anything."""

    def __init__(self, info: MemberInfo, find: FindCoordinator, trust: Trust = UNGUARDED) -> None:
        self.info = info
        self.client = MemberClient(info, find, heartbeat_s=0.05, probe_host="127.0.0.1", trust=trust)
        self.generations: list[Generation] = []
        self.live = 0
        self.abandoned: list[int] = []
        self.epochs: list[tuple[int, int]] = []
        self.topologies: list[pb.TopologyUpdate] = []
        self.excluded: str | None = None
        self.drains = 0
        self.mute_abandon = False
        self.changed = asyncio.Condition()

    def _notify(self) -> None:
        async def notify() -> None:
            async with self.changed:
                self.changed.notify_all()

        self._task = asyncio.create_task(notify())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something that it was told makes the condition true."""
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(condition)

    def on_prepare(self, generation: Generation) -> None:
        self.generations.append(generation)
        asyncio.get_running_loop().run_in_executor(None, self.client.prepared, generation.number)
        self._notify()

    def on_live(self, number: int, epoch: int) -> None:
        self.live = number
        self._notify()

    def on_switch(self, number: int, successor: int) -> None:
        """Alone, as if all headers had said so at once."""
        self.client.switched(number)
        self.live = successor if any(g.number == successor for g in self.generations) else 0
        self.client.abandoned(number)
        self._notify()

    def on_abandon(self, number: int, reason: str) -> None:
        if number == self.live:
            self.live = 0
        if not self.mute_abandon:
            self.client.abandoned(number)
            self.abandoned.append(number)
        self._notify()

    def on_wake(self, number: int, epoch: int) -> None:
        self.epochs.append((number, epoch))
        self._notify()

    def on_topology(self, update: pb.TopologyUpdate) -> None:
        self.topologies.append(update)
        self._notify()

    def on_excluded(self, reason: str) -> None:
        self.live = 0
        self.excluded = reason
        self._notify()

    def on_drain(self) -> None:
        self.drains += 1
        self._notify()
