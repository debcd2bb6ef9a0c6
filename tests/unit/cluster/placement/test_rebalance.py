"""Even load with few loads."""

from __future__ import annotations

import numpy as np
import pytest
from placement_history import carry_through, holding, hosts_on

from expertmesh.cluster.placement.balance import expected_host_rows, expected_rows, imbalance
from expertmesh.cluster.placement.eplb import rebalance_global
from expertmesh.cluster.placement.interface import HostSlots
from expertmesh.cluster.placement.planner import ExpertPlacer
from expertmesh.cluster.placement.rebalance import TOLERANCE
from expertmesh.cluster.types import Placement


def skewed_load(n_layers: int, n_experts: int, seed: int, hottest: float = 30.0) -> list[list[float]]:
    """Few experts have most of the load, others in every layer; `hottest` is the largest over the mean of
    the rest, or so."""
    rng = np.random.default_rng(seed)
    ranks = np.arange(1, n_experts + 1)
    falling = hottest * ranks**-1.0 + 1.0
    return [
        (rng.permutation(falling) * rng.uniform(0.8, 1.2, n_experts) * 100).tolist()
        for _ in range(n_layers)
    ]


def eplb_maxima(load: list[list[float]], n_slots: int, n_hosts: int) -> list[float]:
    """The most loaded host's rows in each layer of the balancer's own placement."""
    expert_LS, _ = rebalance_global(np.array(load), n_slots, n_hosts)
    layers = expert_LS.reshape(len(load), n_hosts, -1).tolist()
    maxima = []
    for rows, hosts in zip(load, layers, strict=True):
        flat = [expert for experts in hosts for expert in experts]
        maxima.append(max(sum(rows[e] / flat.count(e) for e in experts) for experts in hosts))
    return maxima


def started(place: ExpertPlacer, hosts: list[HostSlots]) -> list[HostSlots]:
    return holding(hosts, place(hosts, rebalance=False, staged=False).placement)


class Loads:
    """A load that becomes known later."""

    def __init__(self) -> None:
        self.rows: list[list[float]] | None = None

    def __call__(self) -> list[list[float]] | None:
        return self.rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("staging_slots", [None, 1])
def test_a_quarter_of_redundant_slots_evens_out_a_skewed_load(seed: int, staging_slots: int | None) -> None:
    loads = Loads()
    place = ExpertPlacer(5, 16, n_groups=4, redundant_slots=4, staging_slots=staging_slots, load=loads)
    hosts = started(place, hosts_on(*"aaaa"))
    held = Placement(tuple(tuple(host.held[layer] for host in hosts) for layer in range(5)))
    loads.rows = skewed_load(5, 16, seed, hottest=6.0)
    loads.rows = [sorted(rows, reverse=True) for rows in loads.rows]  # the first host has the hottest
    assert imbalance(expected_host_rows(held, loads.rows)) > 1.3
    steps = carry_through(place, hosts, rebalance=True, n_experts=16, staging_slots=staging_slots)
    placement = steps[-1].placement
    assert imbalance(expected_host_rows(placement, loads.rows)) <= 1.1
    for rows, best in zip(
        expected_rows(placement, loads.rows), eplb_maxima(loads.rows, 20, 4), strict=True
    ):
        assert max(rows) <= best * (1 + TOLERANCE) + 1e-6
    assert sum(step.n_loads for step in steps) <= 0.6 * 20 * 5
    if staging_slots is None:
        assert len(steps) == 1


def test_an_even_load_moves_nothing() -> None:
    place = ExpertPlacer(3, 16, redundant_slots=0, load=lambda: [[7.0] * 16] * 3)
    hosts = started(ExpertPlacer(3, 16), hosts_on(*"aaaa"))
    (step,) = carry_through(place, hosts, rebalance=True, n_experts=16)
    assert (step.n_loads, step.complete) == (0, True)


def test_without_load_a_rebalance_moves_nothing() -> None:
    place = ExpertPlacer(3, 16, redundant_slots=4)
    hosts = started(place, hosts_on(*"aaaa"))
    assert place(hosts, rebalance=True, staged=True).n_loads == 0
    idle = ExpertPlacer(3, 16, redundant_slots=4, load=lambda: [[0] * 16] * 3)
    assert idle(hosts, rebalance=True, staged=True).n_loads == 0


def test_two_hot_experts_on_one_host_are_parted_by_one_exchange() -> None:
    rows = [100.0, 100.0, *[1.0] * 6]
    hosts = started(ExpertPlacer(1, 8), hosts_on("a", "a"))
    place = ExpertPlacer(1, 8, load=lambda: [rows])
    (step,) = carry_through(place, hosts, rebalance=True, n_experts=8)
    assert step.n_loads == 2
    assert expected_host_rows(step.placement, [rows]) == (103.0, 103.0)


def test_a_hot_expert_gets_the_copies() -> None:
    rows = [900.0, *[100.0] * 8]
    hosts = started(ExpertPlacer(1, 9, redundant_slots=3), hosts_on("a", "b", "c", "d"))
    place = ExpertPlacer(1, 9, redundant_slots=3, load=lambda: [rows])
    (step,) = carry_through(place, hosts, rebalance=True, n_experts=9)
    assert len(step.placement.replicas(0, 0)) == 4
    assert imbalance(expected_host_rows(step.placement, [rows])) <= 1 + TOLERANCE


def test_layers_that_cannot_be_even_are_evened_out_over_each_other() -> None:
    """One expert has nearly all rows of each layer, and there are no copies."""
    rows = [[1000.0, *[1.0] * 7]] * 8
    hosts = started(ExpertPlacer(8, 8), hosts_on(*"aaaa"))
    place = ExpertPlacer(8, 8, load=lambda: rows)
    (step,) = carry_through(place, hosts, rebalance=True, n_experts=8)
    assert imbalance(expected_host_rows(step.placement, rows)) <= 1 + TOLERANCE
    assert step.n_loads <= 2 * 6  # six of the eight hot experts leave the first host


def test_groups_keep_to_a_node() -> None:
    load = skewed_load(3, 16, seed=1)
    place = ExpertPlacer(3, 16, n_groups=4, redundant_slots=4, staging_slots=1, load=lambda: load)
    hosts = started(ExpertPlacer(3, 16, redundant_slots=4), hosts_on("a", "b", "a", "b"))
    steps = carry_through(place, hosts, rebalance=True, n_experts=16, staging_slots=1)
    for layer in steps[-1].placement.layers:
        groups = [{expert // 4 for expert in experts} for experts in layer]
        assert (groups[0] | groups[2]).isdisjoint(groups[1] | groups[3])
    again = place(holding(hosts, steps[-1].placement), rebalance=True, staged=True)
    assert (again.n_loads, again.complete) == (0, True)


def test_copies_spread_over_nodes_where_groups_do_not_divide() -> None:
    rows = [800.0, 700.0, *[100.0] * 6]
    place = ExpertPlacer(1, 8, redundant_slots=4, load=lambda: [rows])
    step = place(hosts_on("a", "a", "b", "b"), rebalance=True, staged=False)
    for expert in (0, 1):
        assert {replica.host // 2 for replica in step.placement.replicas(0, expert)} == {0, 1}


def test_a_large_model_is_evened_out() -> None:
    """58 layers of 256 experts on 32 hosts."""
    n_layers, n_experts, n_hosts = 58, 256, 32
    loads = Loads()
    place = ExpertPlacer(n_layers, n_experts, n_groups=8, redundant_slots=32, load=loads)
    hosts = started(place, hosts_on(*["n"] * n_hosts))
    loads.rows = skewed_load(n_layers, n_experts, seed=0)
    (step,) = carry_through(place, hosts, rebalance=True, n_experts=n_experts)
    assert imbalance(expected_host_rows(step.placement, loads.rows)) <= 1 + TOLERANCE
    best = eplb_maxima(loads.rows, n_experts + 32, n_hosts)
    for rows, least in zip(expected_rows(step.placement, loads.rows), best, strict=True):
        assert max(rows) <= least * (1 + TOLERANCE) + 1e-6
    assert step.n_loads <= 0.5 * (n_experts + 32) * n_layers
    again = place(holding(hosts, step.placement), rebalance=True, staged=True)
    assert (again.n_loads, again.complete) == (0, True)
