"""How many slots there are and how many of them each host gets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from expertmesh.cluster.placement.interface import HostSlots, PlacementError


def usable_rooms(hosts: Sequence[HostSlots], n_experts: int, redundant_slots: int) -> tuple[list[int], int]:
    """Each host's room in a layer, and the slots to be used over all hosts.

    A host that leaves has no room. There are as many slots as experts and redundant slots, or fewer
    redundant ones where the room ends. Of more hosts than slots, those that hold the most have room.

    Raises:
        PlacementError: the staying hosts have fewer slots than there are experts.
    """
    rooms = [
        min(n_experts, n_experts if host.n_slots is None else host.n_slots) if host.staying else 0
        for host in hosts
    ]
    staying = [room for room, host in zip(rooms, hosts, strict=True) if host.staying]
    if sum(staying) < n_experts:
        raise PlacementError(_too_little(n_experts, staying))
    n_slots = min(n_experts + redundant_slots, sum(rooms))
    if n_slots < len(staying):
        n_held = [sum(map(len, host.held)) if host.staying else -1 for host in hosts]
        active = sorted(range(len(hosts)), key=lambda i: (-n_held[i], i))[:n_slots]
        rooms = [room if i in active else 0 for i, room in enumerate(rooms)]
        n_slots = min(n_slots, sum(rooms))
        if n_slots < n_experts:
            raise PlacementError(_too_little(n_experts, staying))
    return rooms, n_slots


def host_shares(n_slots: int, rooms: Sequence[int], n_held: Sequence[int]) -> list[int]:
    """Splits the slots of a layer evenly: shares differ by one at most, unless a host's room ends before.

    Who gets one more is who holds the most now, so that little has to move; then the first.
    """
    level = (
        bisect_right(range(max(rooms) + 1), n_slots, key=lambda at: sum(min(room, at) for room in rooms))
        - 1
    )
    shares = [min(room, level) for room in rooms]
    larger = [i for i, room in enumerate(rooms) if room > level]
    larger.sort(key=lambda i: (-min(n_held[i], level + 1), i))
    for i in larger[: n_slots - sum(shares)]:
        shares[i] += 1
    return shares


def _too_little(n_experts: int, rooms: Sequence[int]) -> str:
    if not rooms or max(rooms) == 0:
        return f"{n_experts} experts a layer do not fit: no expert host stays that has a slot"
    have = f"{len(rooms)} hosts with {sum(rooms)} slots together"
    if min(rooms) == max(rooms):
        have = f"{len(rooms)} hosts x {rooms[0]} slots"
    needed = len(rooms) + -(-(n_experts - sum(rooms)) // max(rooms))
    return f"{n_experts} experts a layer do not fit in {have}; {needed} hosts are needed"
