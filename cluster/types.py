"""Who takes part in a deployment and how a generation is made up: frozen values, no torch, no Ray."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property


class Role(enum.Enum):
    """What a member does; gateways are told of generations but are not part of them."""

    GATEWAY = "gateway"
    ROUTER = "router"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One process of the deployment, for as long as it lives."""

    incarnation: str
    """New with every process life."""
    role: Role
    node: str
    pid: int
    device: str
    stream_address: str = ""
    """Routers: HOST:PORT of the RouterStream server."""
    store_address: str = ""
    """HOST:PORT of the torch store that this member hosts when it is the lowest rank."""
    replica_id: str = ""
    """Serve's."""
    slots: int = 0
    """Expert hosts: slots of each MoE layer that there is room for, those for preparing a change apart;
    0 is no bound."""
    probe_address: str = ""
    """HOST:PORT where others find out whether they reach this member; none for gateways."""

    @property
    def label(self) -> str:
        """How reasons and logs name this member."""
        kind = "expert host" if self.role is Role.EXPERTS else self.role.value
        return f"{kind} {self.incarnation} (pid {self.pid} on {self.node})"


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a logical expert."""

    host: int
    """Index among the expert hosts; its rank is `n_routers + host`."""
    slot: int


@dataclass(frozen=True)
class Placement:
    """Which logical expert stands in which slot, for every MoE layer (counted among MoE layers alone)."""

    layers: tuple[tuple[tuple[int, ...], ...], ...]
    """`layers[layer][host][slot]` is a logical expert. Empty in the fused mode and for dense models."""

    @property
    def n_layers(self) -> int:
        """MoE layers."""
        return len(self.layers)

    @property
    def n_hosts(self) -> int:
        """Expert hosts (0 when there is no MoE layer)."""
        return len(self.layers[0]) if self.layers else 0

    def experts_on(self, layer: int, host: int) -> tuple[int, ...]:
        """The logical experts in a host's slots of one layer, in slot order."""
        return self.layers[layer][host]

    def replicas(self, layer: int, expert: int) -> tuple[Replica, ...]:
        """Every copy of a logical expert in one layer, by host and slot; empty when it has none."""
        return self._replicas[layer].get(expert, ())

    def replicas_of_layer(self, layer: int) -> dict[int, tuple[Replica, ...]]:
        """Every logical expert of one layer to its copies, by host and slot."""
        return dict(self._replicas[layer])

    @cached_property
    def _replicas(self) -> tuple[dict[int, tuple[Replica, ...]], ...]:
        tables = []
        for hosts in self.layers:
            table: dict[int, tuple[Replica, ...]] = {}
            for host, experts in enumerate(hosts):
                for slot, expert in enumerate(experts):
                    table[expert] = (*table.get(expert, ()), Replica(host, slot))
            tables.append(table)
        return tuple(tables)


@dataclass(frozen=True, slots=True)
class Weights:
    """One version of the model's weights."""

    version: int = 1
    """Rises with every reload."""
    path: str = ""
    """The checkpoint's directory on every node; empty is the one in the deployment's configuration."""

    @property
    def label(self) -> str:
        """How reasons and logs name it."""
        return f"weights version {self.version} ({self.path or 'as configured'})"


AS_CONFIGURED = (Weights(),)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of generation, for people to read."""

    generation: int
    kind: str
    """`start`, `scale`, `rebalance`, `recovery` or `reload`."""
    reason: str
    outcome: str
    """`under way`, `live` or `rolled back`."""
    seconds: float
    """From its trigger to its end, so far while under way."""
    ended_s: float
    """On the machine's clock; of its trigger while under way."""
    n_routers: int = 0
    """Routers of the generation that it brought; 0 unless `live`."""
    n_experts: int = 0
    """Its expert hosts."""
    n_copies_placed: int = 0
    """Copies of experts that stand on a host which did not hold them before, over all MoE layers."""


@dataclass(frozen=True)
class Generation:
    """Who steps together, in which order, and where the experts stand."""

    number: int
    members: tuple[MemberInfo, ...]
    """In rank order: routers, then expert hosts."""
    placement: Placement
    store_address: str
    """HOST:PORT of the torch store; rank 0 hosts it."""
    weights: tuple[Weights, ...] = AS_CONFIGURED
    """Oldest first: one, or two while requests that began with the older one are finishing."""

    @property
    def routers(self) -> tuple[MemberInfo, ...]:
        """The routers, in rank order."""
        return tuple(m for m in self.members if m.role is Role.ROUTER)

    @property
    def experts(self) -> tuple[MemberInfo, ...]:
        """The expert hosts, in rank order."""
        return tuple(m for m in self.members if m.role is Role.EXPERTS)

    @property
    def n_routers(self) -> int:
        """Routers; they have ranks 0 .. n_routers - 1."""
        return len(self.routers)

    @property
    def n_experts(self) -> int:
        """Expert hosts; they have the ranks behind the routers'. 0 in the fused mode."""
        return len(self.experts)

    def rank_of(self, incarnation: str) -> int:
        """The rank of a member; KeyError when it is not in this generation."""
        for rank, member in enumerate(self.members):
            if member.incarnation == incarnation:
                return rank
        raise KeyError(f"{incarnation} is not a member of generation {self.number}")

    def has(self, incarnation: str) -> bool:
        """Whether a member is part of this generation."""
        return any(m.incarnation == incarnation for m in self.members)
