"""What the membership state machine asks of whoever places the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from expertmesh.cluster.types import Placement


class PlacementError(ValueError):
    """The experts cannot be placed on these hosts; the message says how much room is missing."""


@dataclass(frozen=True, slots=True)
class HostSlots:
    """One expert host: its room, and what it holds."""

    node: str
    """Copies of an expert spread over nodes; groups of experts keep to one."""
    n_slots: int | None = None
    """Slots of each MoE layer that there is room for, those for preparing a change apart; None: no
    bound."""
    staying: bool = True
    """False: the host leaves, and is to be emptied."""
    held: tuple[tuple[int, ...], ...] = ()
    """For each MoE layer the logical experts in its slots now; () for a host that holds none."""


@dataclass(frozen=True, slots=True)
class PlacementStep:
    """One change of placement, which no host needs more than its staging slots for."""

    placement: Placement
    """Over exactly the hosts that were given, in their order; one without a slot in any layer may go."""
    complete: bool
    """False: a further step leads on towards the target."""
    n_loads: int
    """Experts that hosts have to load, over all layers."""


class Placer(Protocol):
    """Computes the next placement; the same answer for the same hosts and load."""

    def __call__(self, hosts: Sequence[HostSlots], *, rebalance: bool, staged: bool) -> PlacementStep:
        """The next step.

        Args:
            hosts: in rank order; none in the fused mode, where the placement is empty and complete.
            rebalance: move and copy experts until the load is even. Otherwise only what the hosts that are
                new, leave or are gone require: the fewest loads that leave no host with more than its share
                of slots.
            staged: the present placement serves on meanwhile, so that a host holds old and new experts at
                once: `experts.staging_slots` bounds what it loads. Otherwise nothing does but its room.

        Raises:
            PlacementError: the staying hosts have no room for every expert.
        """
        ...
