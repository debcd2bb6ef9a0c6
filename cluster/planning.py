"""Who would make up the next generation, and where the experts would stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expertmesh.cluster.placement.interface import HostSlots, PlacementError, Placer
from expertmesh.cluster.roster import Member, Roster
from expertmesh.cluster.types import Generation, MemberInfo, Placement, Role


@dataclass(frozen=True, slots=True)
class Needs:
    """The fewest members of a generation."""

    n_routers: int
    n_experts: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A generation that could be."""

    members: tuple[MemberInfo, ...]
    """In rank order."""
    placement: Placement
    complete: bool
    """False: a further change leads on towards where the experts are to stand."""
    n_loads: int
    """Experts that hosts would have to load."""
    note: str = ""
    """Why hosts that want to leave have to stay."""

    def changes(self, generation: Generation) -> bool:
        """Whether it differs from a generation."""
        return self.n_loads > 0 or {m.incarnation for m in self.members} != {
            m.incarnation for m in generation.members
        }


def formation(roster: Roster, needs: Needs, place: Placer, last: Generation | None) -> Plan | str:
    """The generation of all who stay, or what is missing for one; they hold the experts of `last`."""
    members = [m for m in roster if not m.leaving]
    missing = _missing(members, needs)
    if missing:
        return missing
    try:
        return _plan(members, [], place, last, rebalance=False, staged=False)
    except PlacementError as error:
        return str(error)


def successor(
    roster: Roster, needs: Needs, place: Placer, current: Generation, *, rebalance: bool
) -> Plan | str:
    """The generation to follow a live one, or why there is none.

    Members that want to leave and still hold experts stay until these have moved. When the others have no
    room for them, they stay for good.
    """
    staying = [m for m in roster if not m.leaving]
    leaving_hosts = [
        m
        for m in roster.of_role(Role.EXPERTS)
        if m.leaving and current.has(m.info.incarnation) and current.number in m.engaged
    ]
    missing = _missing(staying, needs)
    if missing:
        return missing
    try:
        return _plan(staying, leaving_hosts, place, current, rebalance=rebalance, staged=True)
    except PlacementError as error:
        note = str(error)
    try:
        plan = _plan([*staying, *leaving_hosts], [], place, current, rebalance=rebalance, staged=True)
    except PlacementError:
        return note
    return replace(plan, note=note)


def _missing(members: Sequence[Member], needs: Needs) -> str:
    n_routers = sum(m.info.role is Role.ROUTER for m in members)
    n_experts = sum(m.info.role is Role.EXPERTS for m in members)
    if n_routers >= needs.n_routers and n_experts >= needs.n_experts:
        return ""
    return (
        f"{n_routers} of at least {needs.n_routers} routers and "
        f"{n_experts} of at least {needs.n_experts} expert hosts are there"
    )


def _plan(
    staying: Sequence[Member],
    leaving_hosts: Sequence[Member],
    place: Placer,
    last: Generation | None,
    *,
    rebalance: bool,
    staged: bool,
) -> Plan:
    routers = [m.info for m in staying if m.info.role is Role.ROUTER]
    hosts = [m for m in staying if m.info.role is Role.EXPERTS] + list(leaving_hosts)
    slots = [_slots(m, last, staying=m not in leaving_hosts) for m in hosts]
    step = place(slots, rebalance=rebalance, staged=staged)
    layers = step.placement.layers
    kept = [i for i in range(len(hosts)) if not layers or any(layer[i] for layer in layers)]
    placement = Placement(tuple(tuple(layer[i] for i in kept) for layer in layers))
    return Plan((*routers, *(hosts[i].info for i in kept)), placement, step.complete, step.n_loads)


def _slots(host: Member, last: Generation | None, *, staying: bool) -> HostSlots:
    held: tuple[tuple[int, ...], ...] = ()
    if last is not None and last.has(host.info.incarnation):
        index = last.rank_of(host.info.incarnation) - last.n_routers
        held = tuple(layer[index] for layer in last.placement.layers)
    return HostSlots(host.info.node, host.info.slots or None, staying, held)
