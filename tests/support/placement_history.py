"""Hosts and what becomes of them under a placer, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from expertmesh.cluster.placement.interface import HostSlots, PlacementStep, Placer
from expertmesh.cluster.types import Placement

MAX_STEPS = 500


def hosts_on(*nodes: str, n_slots: int | None = None) -> list[HostSlots]:
    """Hosts that hold nothing yet."""
    return [HostSlots(node, n_slots) for node in nodes]


def holding(hosts: Sequence[HostSlots], placement: Placement) -> list[HostSlots]:
    """The same hosts once a placement is live."""
    return [
        replace(host, held=tuple(layer[i] for layer in placement.layers)) for i, host in enumerate(hosts)
    ]


def leaving(host: HostSlots) -> HostSlots:
    """A host that wants to leave."""
    return replace(host, staying=False)


def check_step(
    hosts: Sequence[HostSlots], step: PlacementStep, n_experts: int, staging_slots: int | None
) -> None:
    """What holds for every planned step."""
    n_loads = 0
    for layer, of_layer in enumerate(step.placement.layers):
        assert len(of_layer) == len(hosts)
        assert {expert for experts in of_layer for expert in experts} == set(range(n_experts))
        for host, experts in zip(hosts, of_layer, strict=True):
            held = host.held[layer] if host.held else ()
            new = set(experts) - set(held)
            n_loads += len(new)
            assert len(set(experts)) == len(experts)
            assert host.n_slots is None or len(experts) <= max(host.n_slots, len(held))
            assert [e for e in held if e in experts] == list(experts[: len(experts) - len(new)])
            if held and staging_slots is not None:
                assert len(new) <= staging_slots
            if not host.staying:
                assert not new
                assert not (experts and step.complete)
    assert step.n_loads == n_loads
    assert step.complete or n_loads > 0


def carry_through(
    place: Placer,
    hosts: Sequence[HostSlots],
    *,
    rebalance: bool,
    n_experts: int,
    staging_slots: int | None = None,
) -> list[PlacementStep]:
    """Plans and carries out step after step until one is complete; checks each."""
    steps: list[PlacementStep] = []
    while not (steps and steps[-1].complete):
        steps.append(place(hosts, rebalance=rebalance, staged=True))
        check_step(hosts, steps[-1], n_experts, staging_slots)
        hosts = holding(hosts, steps[-1].placement)
        assert len(steps) < MAX_STEPS
    return steps
