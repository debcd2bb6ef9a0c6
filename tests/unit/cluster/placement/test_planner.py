"""What joins, leaves and losses require of a placement, with known numbers."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from placement_history import carry_through, check_step, holding, hosts_on, leaving

from expertmesh.cluster.placement.contiguous import contiguous_placement
from expertmesh.cluster.placement.interface import HostSlots, PlacementError, PlacementStep
from expertmesh.cluster.placement.planner import ExpertPlacer
from expertmesh.cluster.types import Placement


def first(place: ExpertPlacer, hosts: list[HostSlots]) -> PlacementStep:
    """The first placement of a deployment."""
    return place(hosts, rebalance=False, staged=False)


def counts(step: PlacementStep, layer: int = 0) -> list[int]:
    return [len(experts) for experts in step.placement.layers[layer]]


@pytest.mark.parametrize(("n_experts", "n_hosts"), [(16, 1), (16, 2), (16, 3), (7, 7), (256, 32)])
def test_the_first_placement_is_contiguous(n_experts: int, n_hosts: int) -> None:
    step = first(ExpertPlacer(3, n_experts), hosts_on(*["n"] * n_hosts))
    assert step == PlacementStep(contiguous_placement(3, n_experts, n_hosts), True, 3 * n_experts)


def test_without_hosts_or_moe_layers_it_is_empty() -> None:
    empty = PlacementStep(Placement(()), complete=True, n_loads=0)
    assert ExpertPlacer(3, 16)([], rebalance=True, staged=True) == empty
    assert first(ExpertPlacer(0, 0), hosts_on("a", "b")) == empty


def test_redundant_slots_take_an_expert_of_each_host_to_another() -> None:
    step = first(ExpertPlacer(1, 16, redundant_slots=4), hosts_on("a", "a", "a", "a"))
    layer = step.placement.layers[0]
    assert counts(step) == [5, 5, 5, 5]
    runs = [set(range(4 * i, 4 * i + 4)) for i in range(4)]
    assert all(run < set(experts) for run, experts in zip(runs, layer, strict=True))
    copies = [min(set(experts) - run) for run, experts in zip(runs, layer, strict=True)]
    assert sorted(expert // 4 for expert in copies) == [0, 1, 2, 3]


def test_copies_go_to_other_nodes() -> None:
    step = first(ExpertPlacer(1, 8, redundant_slots=8), hosts_on("a", "a", "b", "b"))
    for expert in range(8):
        assert {replica.host // 2 for replica in step.placement.replicas(0, expert)} == {0, 1}


def test_a_new_host_gets_its_share_and_nothing_else_moves() -> None:
    place = ExpertPlacer(2, 16)
    before = first(place, hosts_on("a", "a"))
    hosts = [*holding(hosts_on("a", "a"), before.placement), *hosts_on("a", "a")]
    step = place(hosts, rebalance=False, staged=True)
    check_step(hosts, step, 16, None)
    assert (step.complete, step.n_loads, counts(step)) == (True, 16, [4, 4, 4, 4])


def test_a_leaving_host_is_emptied_and_its_experts_are_spread() -> None:
    place = ExpertPlacer(2, 16)
    before = first(place, hosts_on("a", "a", "a", "a"))
    hosts = holding(hosts_on("a", "a", "a", "a"), before.placement)
    hosts[1], hosts[3] = leaving(hosts[1]), leaving(hosts[3])
    step = place(hosts, rebalance=False, staged=True)
    check_step(hosts, step, 16, None)
    assert (step.complete, step.n_loads, counts(step)) == (True, 16, [8, 0, 8, 0])


def test_a_leaving_host_whose_experts_stand_elsewhere_costs_only_the_copies() -> None:
    place = ExpertPlacer(1, 4, redundant_slots=4)
    before = first(place, hosts_on("a", "a", "a"))
    hosts = holding(hosts_on("a", "a", "a"), before.placement)
    hosts[2] = leaving(hosts[2])
    step = place(hosts, rebalance=False, staged=True)
    assert counts(step) == [4, 4, 0]
    assert step.n_loads == 8 - sum(counts(before)[:2])


def test_what_is_larger_than_the_staging_slots_goes_in_steps() -> None:
    place = ExpertPlacer(2, 16, staging_slots=3)
    hosts = holding(hosts_on("a", "a"), first(place, hosts_on("a", "a")).placement)
    hosts[1] = leaving(hosts[1])
    steps = carry_through(place, hosts, rebalance=False, n_experts=16, staging_slots=3)
    assert [step.n_loads for step in steps] == [6, 6, 4]  # 3 + 3 + 2 experts of each of the 2 layers
    assert [counts(step) for step in steps] == [[11, 5], [14, 2], [16, 0]]


def test_a_new_host_fills_its_own_slots_at_once() -> None:
    place = ExpertPlacer(1, 16, staging_slots=1)
    hosts = [*holding(hosts_on("a"), first(place, hosts_on("a")).placement), *hosts_on("a")]
    step = place(hosts, rebalance=False, staged=True)
    assert (step.complete, step.n_loads, counts(step)) == (True, 8, [8, 8])


def test_after_a_loss_only_what_nobody_holds_is_loaded_and_then_the_copies() -> None:
    place = ExpertPlacer(3, 16, redundant_slots=4)
    hosts = holding(hosts_on(*"aaaa"), first(place, hosts_on(*"aaaa")).placement)
    survivors = hosts[:3]
    step = place(survivors, rebalance=False, staged=False)
    lost = 16 - len({expert for host in survivors for expert in host.held[0]})
    assert 0 < lost < 5
    assert (step.n_loads, step.complete) == (3 * lost, False)
    assert max(counts(step)) - min(counts(step)) <= 1
    (rest,) = carry_through(place, holding(survivors, step.placement), rebalance=False, n_experts=16)
    assert sum(counts(rest)) == 20
    assert step.n_loads + rest.n_loads == 3 * 5


def test_without_redundant_slots_recovery_is_complete() -> None:
    place = ExpertPlacer(2, 16)
    hosts = holding(hosts_on(*"aaaa"), first(place, hosts_on(*"aaaa")).placement)
    step = place([hosts[0], hosts[2]], rebalance=False, staged=False)
    assert (step.complete, step.n_loads, counts(step)) == (True, 16, [8, 8])


def test_a_host_without_room_for_its_share_gets_what_it_has_room_for() -> None:
    hosts = [HostSlots("a", 3), HostSlots("a"), HostSlots("a", 10)]
    step = first(ExpertPlacer(1, 16, redundant_slots=2), hosts)
    assert counts(step) == [3, 8, 7]


def test_fewer_redundant_slots_where_the_room_ends() -> None:
    step = first(ExpertPlacer(1, 16, redundant_slots=8), hosts_on("a", "a", n_slots=9))
    assert counts(step) == [9, 9]
    assert counts(first(ExpertPlacer(1, 4, redundant_slots=8), hosts_on("a", "a"))) == [4, 4]


def test_too_little_room_is_refused_with_what_is_needed() -> None:
    place = ExpertPlacer(1, 16)
    with pytest.raises(PlacementError, match=r"16 .* do not fit in 2 hosts x 5 slots; 4 hosts are needed"):
        first(place, hosts_on("a", "a", n_slots=5))
    with pytest.raises(PlacementError, match="2 hosts with 9 slots together; 4 hosts are needed"):
        first(place, [HostSlots("a", 5), HostSlots("a", 4)])
    hosts = holding(hosts_on("a"), first(place, hosts_on("a")).placement)
    with pytest.raises(PlacementError, match="no expert host stays"):
        place([leaving(hosts[0])], rebalance=False, staged=True)


def test_more_hosts_than_slots_leave_the_last_without() -> None:
    place = ExpertPlacer(2, 3, redundant_slots=1)
    step = first(place, hosts_on(*"aaaaaa"))
    assert counts(step) == [1, 1, 1, 1, 0, 0]
    hosts = holding(hosts_on(*"aaaa"), Placement(tuple(layer[:4] for layer in step.placement.layers)))
    joined = place([*hosts_on("a"), *hosts], rebalance=False, staged=True)
    assert (joined.n_loads, counts(joined)) == (0, [0, 1, 1, 1, 1])


def test_a_load_of_another_model_is_an_error() -> None:
    place = ExpertPlacer(2, 4, load=lambda: [[1, 2, 3, 4]])
    with pytest.raises(ValueError, match=r"the load has shape \(1, 4\), expected 2 layers x 4 experts"):
        first(place, hosts_on("a"))


def test_a_large_model_is_scaled_step_by_step() -> None:
    """58 layers of 256 experts: 32 hosts, of which one is lost, two leave and three are new."""
    n_layers, n_experts = 58, 256
    place = ExpertPlacer(n_layers, n_experts, redundant_slots=32, staging_slots=4)
    nodes = [f"n{i // 8}" for i in range(32)]
    hosts = holding(hosts_on(*nodes), first(place, hosts_on(*nodes)).placement)
    hosts = [leaving(hosts[0]), *hosts[1:9], leaving(hosts[9]), *hosts[10:], *hosts_on("n4", "n4", "n4")]
    steps = carry_through(place, hosts, rebalance=False, n_experts=n_experts, staging_slots=4)
    final = steps[-1]
    for layer in range(n_layers):
        of_hosts = counts(final, layer)
        assert (of_hosts[0], of_hosts[9]) == (0, 0)
        assert sum(of_hosts) == n_experts + 32
        assert {n for i, n in enumerate(of_hosts) if i not in (0, 9)} == {8, 9}
    # Each of the 33 hosts that stay has 8 or 9 of the 288 slots: the new ones load no more than that.
    assert 3 * 8 * n_layers <= sum(step.n_loads for step in steps) <= 3 * 9 * n_layers
    assert all(a.n_loads > 0 for a, _ in pairwise(steps))


def test_neither_torch_nor_ray_is_imported() -> None:
    code = (
        "import sys, expertmesh.cluster.placement.planner, expertmesh.cluster.placement.balance;"
        "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
