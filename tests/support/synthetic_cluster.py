"""A cluster that is not there, as large as one wants: what its coordinator would say."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from expertmesh.proto.v1 import internal_pb2 as pb

WINDOW_S = 60.0


class SyntheticCluster:
    """Answers as a coordinator, and changes when it is asked to, at once.

    Args:
        routers: their stream addresses.
        n_hosts: expert hosts.
        n_layers: MoE layers.
        n_experts: logical experts of each.
        n_copies: further copies of the hottest experts of each layer.
        seed: of the load.
    """

    def __init__(
        self,
        routers: Sequence[str],
        n_hosts: int = 4,
        n_layers: int = 5,
        n_experts: int = 16,
        n_copies: int = 2,
        seed: int = 1,
    ) -> None:
        self._random = random.Random(seed)
        self._routers, self._n_hosts = list(routers), n_hosts
        self.n_layers, self.n_experts, self._n_copies = n_layers, n_experts, n_copies
        self.error: Exception | None = None
        self.n_asked = 0
        self.update = pb.TopologyUpdate(state="running")
        self.update.targets.CopyFrom(pb.ScaleTargets(gateway=1, router=len(self._routers), experts=n_hosts))
        self.update.outside.add(member=_member("gateway-a", pb.ROLE_GATEWAY, 90), outstanding_requests=2)
        self._heat = [
            [self._random.lognormvariate(0, 0.7) for _ in range(n_experts)] for _ in range(n_layers)
        ]
        self._form()
        self._note("start", "enough members are there")
        self.tick()

    async def __call__(self) -> pb.TopologyUpdate:
        """What a gateway is told."""
        self.n_asked += 1
        answer = pb.TopologyUpdate()
        answer.CopyFrom(self.update)
        return answer

    def tick(self) -> None:
        """A second of load."""
        update, n = self.update, self._n_hosts
        noise = self._random.uniform
        rows = [[round(1000 * heat * noise(0.9, 1.1)) for heat in layer] for layer in self._heat]
        del update.window_expert_rows[:]
        update.window_expert_rows.extend(row for layer in rows for row in layer)
        del update.window_host_rows[:]
        for layer, placement in zip(rows, update.generation.placement, strict=True):
            copies = [expert for slots in placement.hosts for expert in slots.experts]
            update.window_host_rows.extend(
                round(sum(layer[expert] / copies.count(expert) for expert in slots.experts))
                for slots in placement.hosts
            )
        host_rows = [sum(update.window_host_rows[host::n]) for host in range(n)]
        update.imbalance = max(host_rows) * n / sum(host_rows) if n else 0.0
        for rank in range(len(update.tokens)):
            update.tokens[rank] += 900 + 40 * rank
        for rank in range(len(self._routers)):
            update.running_requests[rank] = 5 + rank
            update.queued_requests[rank] = 1
            update.cache_blocks_used[rank] = 300 + 20 * rank

    def kill_host(self, reason: str = "") -> str:
        """The last host is lost, the others go on; gives its incarnation. A `reason` need not name it."""
        lost = self.update.generation.members[-1]
        self._n_hosts -= 1
        self._form()
        self._note(
            "recovery", reason or f"expert host {lost.incarnation} (pid {lost.pid} on node-a) was lost"
        )
        self.tick()
        return lost.incarnation

    # what a gateway asks to be changed (`cluster_changes.ClusterControl`)

    async def scale(self, deployment: str, n_replicas: int) -> int:
        """As `Coordinator.Scale`, for expert hosts alone."""
        if self.error:
            raise self.error
        before, self._n_hosts = self._n_hosts, n_replicas
        self.update.targets.experts = n_replicas
        self._form()
        self._note("scale", f"{abs(n_replicas - before)} expert hosts come or go")
        self.tick()
        return before

    async def rebalance(self) -> pb.RebalanceResponse:
        """As `Coordinator.Rebalance`: two further copies of the hottest experts."""
        if self.error:
            raise self.error
        before = self.update.imbalance
        self._n_copies += 2
        self._form()
        self._note("rebalance", "asked for")
        self.tick()
        return pb.RebalanceResponse(begun=True, imbalance=before)

    async def reload(self, path: str) -> pb.ReloadResponse:
        """As `Coordinator.Reload`."""
        if self.error:
            raise self.error
        return pb.ReloadResponse(version=2, after_generation=self.update.generation.number)

    def _form(self) -> None:
        generation = self.update.generation
        generation.number += 1
        del generation.members[:], generation.placement[:]
        for i, address in enumerate(self._routers):
            generation.members.append(_member(f"router-{i}", pb.ROLE_ROUTER, 100 + i, address))
        for i in range(self._n_hosts):
            generation.members.append(_member(f"host-{i}", pb.ROLE_EXPERTS, 200 + i))
        for layer, heat in enumerate(self._heat):
            hottest = sorted(range(self.n_experts), key=lambda expert: -heat[expert])
            copies = [*range(self.n_experts), *hottest[: self._n_copies]]
            hosts = [pb.Slots(experts=copies[host :: self._n_hosts]) for host in range(self._n_hosts)]
            generation.placement.append(pb.LayerSlots(layer=layer, hosts=hosts))
        if not generation.weights:
            generation.weights.add(version=1)
        for field, value in (("tokens", 0), ("running_requests", 0), ("queued_requests", 0)):
            figures = getattr(self.update, field)
            figures.extend([value] * (len(generation.members) - len(figures)))
            del figures[len(generation.members) :]
        for field, value in (("cache_blocks", 2048), ("cache_blocks_used", 0)):
            figures = getattr(self.update, field)
            del figures[:]
            figures.extend([value] * len(self._routers) + [0] * self._n_hosts)

    def _note(self, kind: str, reason: str, outcome: str = "live") -> None:
        self.update.changes.add(
            generation=self.update.generation.number,
            kind=kind,
            reason=reason,
            outcome=outcome,
            seconds=0.4,
            unix_s=time.time(),
            routers=len(self._routers),
            experts=self._n_hosts,
            copies_placed=12,
        )


def _member(name: str, role: pb.Role, pid: int, address: str = "") -> pb.MemberSpec:
    return pb.MemberSpec(
        incarnation=name, role=role, node="node-a", pid=pid, device="cpu", stream_address=address
    )
