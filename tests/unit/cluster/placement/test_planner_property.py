"""Whatever becomes of the hosts: every expert has a slot, shares are even, and it comes to rest."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placement_history import carry_through, holding, leaving

from expertmesh.cluster.placement.interface import HostSlots, PlacementError
from expertmesh.cluster.placement.planner import ExpertPlacer

NODES = st.sampled_from(["a", "b", "c"])


@st.composite
def _hosts(draw: st.DrawFn, n_experts: int) -> HostSlots:
    room = st.none() | st.integers(max(1, n_experts // 2), n_experts)
    return HostSlots(draw(NODES), draw(room))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_history_comes_to_rest(data: st.DataObject) -> None:
    draw = data.draw
    n_layers, n_groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4]))
    n_experts = n_groups * draw(st.integers(1, 4))
    redundant, staging = draw(st.integers(0, n_experts)), draw(st.none() | st.integers(1, 3))
    rows: list[list[list[float]] | None] = [None]
    place = ExpertPlacer(
        n_layers,
        n_experts,
        n_groups=n_groups,
        redundant_slots=redundant,
        staging_slots=staging,
        load=lambda: rows[0],
    )
    hosts: list[HostSlots] = draw(st.lists(_hosts(n_experts), min_size=1, max_size=4))
    for event in draw(st.lists(st.sampled_from(["join", "leave", "lose", "load"]), max_size=4)):
        staged, rebalance = any(host.held for host in hosts), False
        if event == "join" and len(hosts) < 6:
            hosts.append(draw(_hosts(n_experts)))
        elif event == "leave":
            at = draw(st.integers(0, len(hosts) - 1))
            hosts[at] = leaving(hosts[at])
        elif event == "lose" and len(hosts) > 1:
            hosts.pop(draw(st.integers(0, len(hosts) - 1)))
            staged = False
        elif event == "load":
            n_rows = st.integers(0, 1000) | st.sampled_from([0, 0.5, 1e6])
            of_layer = st.lists(n_rows, min_size=n_experts, max_size=n_experts)
            rows[0] = draw(st.none() | st.lists(of_layer, min_size=n_layers, max_size=n_layers))
            rebalance = True

        rooms = [n_experts if h.n_slots is None else h.n_slots for h in hosts if h.staying]
        try:
            if not staged:
                step = place(hosts, rebalance=False, staged=False)
                hosts = holding(hosts, step.placement)
            final = carry_through(
                place, hosts, rebalance=rebalance, n_experts=n_experts, staging_slots=staging
            )[-1]
        except PlacementError:
            assert sum(rooms) < n_experts
            return
        assert sum(rooms) >= n_experts
        again = place(holding(hosts, final.placement), rebalance=rebalance, staged=True)
        assert (again.n_loads, again.complete) == (0, True)
        hosts = [host for host in holding(hosts, final.placement) if host.staying]
        for layer in range(n_layers):
            counts = [len(host.held[layer]) for host in hosts]
            if len(hosts) <= n_experts:
                assert sum(counts) == min(n_experts + redundant, sum(rooms))
                short = [
                    n for n, host in zip(counts, hosts, strict=True) if n != (host.n_slots or n_experts)
                ]
                assert not short or max(counts) - min(short) <= 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_even_placement_needs_fewer_loads(data: st.DataObject) -> None:
    draw = data.draw
    n_experts, n_hosts = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    n_slots = min(n_experts + draw(st.integers(0, 3)), n_experts * n_hosts)
    held = [draw(st.sets(st.integers(0, n_experts - 1))) for _ in range(n_hosts)]
    staying = [draw(st.booleans()) for _ in range(n_hosts - 1)] + [True]
    n_slots = min(n_slots, n_experts * sum(staying))
    place = ExpertPlacer(1, n_experts, redundant_slots=n_slots - n_experts)
    hosts = [
        replace(HostSlots("a", None, stays), held=(tuple(sorted(experts)),))
        for experts, stays in zip(held, staying, strict=True)
    ]
    step = place(hosts, rebalance=False, staged=True)
    if not any(held):
        return

    n_staying = sum(staying)
    sizes = {n_slots // n_staying, -(-n_slots // n_staying)}
    options = [
        [set(chosen) for n in sizes for chosen in combinations(range(n_experts), n)] if stays else [set()]
        for stays in staying
    ]
    shares = [len(experts) for experts in step.placement.layers[0]]
    fewest = min(
        sum(len(after - before) for before, after in zip(held, choice, strict=True))
        for choice in product(*options)
        if [len(experts) for experts in choice] == shares and len(set().union(*choice)) == n_experts
    )
    assert step.n_loads == fewest
