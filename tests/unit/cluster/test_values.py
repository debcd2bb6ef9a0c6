"""Placement, generations, their messages, load figures and a member's place among generations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple, replace

import pytest
from fake_member import member_info

from expertmesh.cluster.load import Load, LoadTable
from expertmesh.cluster.placement.contiguous import contiguous_placement
from expertmesh.cluster.placement.interface import PlacementError
from expertmesh.cluster.track import AbandonNews, GenerationTrack
from expertmesh.cluster.types import Generation, Placement, Replica, Weights
from expertmesh.cluster.wire import (
    WireError,
    generation_from_proto,
    generation_to_proto,
    hello_to_proto,
    load_from_proto,
    load_to_proto,
    member_from_proto,
)
from expertmesh.proto.v1 import internal_pb2 as pb


@pytest.fixture
def generation() -> Generation:
    members = tuple(member_info(n) for n in ("r0", "r1", "e0", "e1", "e2"))
    return Generation(3, members, contiguous_placement(2, 8, 3), "r0:2")


@pytest.mark.parametrize("n_experts", [1, 5, 8, 64])
@pytest.mark.parametrize("n_hosts", [1, 2, 3, 7])
def test_contiguous_placement_is_balanced_and_whole(n_experts: int, n_hosts: int) -> None:
    if n_hosts > n_experts:
        with pytest.raises(PlacementError, match=f"{n_hosts} expert hosts for {n_experts} experts"):
            contiguous_placement(3, n_experts, n_hosts)
        return
    placement = contiguous_placement(3, n_experts, n_hosts)
    assert (placement.n_layers, placement.n_hosts) == (3, n_hosts)
    for layer in range(3):
        slots = [placement.experts_on(layer, host) for host in range(n_hosts)]
        assert [e for experts in slots for e in experts] == list(range(n_experts))
        assert max(map(len, slots)) - min(map(len, slots)) <= 1


def test_placement_refuses_too_few_slots_and_says_what_is_needed() -> None:
    with pytest.raises(PlacementError, match="do not fit in 2 hosts x 3 slots; 3 hosts are needed"):
        contiguous_placement(1, 8, 2, slots_per_host=3)
    assert contiguous_placement(1, 8, 2, slots_per_host=4).n_hosts == 2


def test_placement_without_hosts_or_moe_layers_is_empty() -> None:
    assert contiguous_placement(2, 8, 0) == contiguous_placement(0, 0, 2) == Placement(())


def test_replicas_name_host_and_slot() -> None:
    placement = Placement((((0, 2), (1, 0)),))
    assert placement.replicas(0, 0) == (Replica(0, 0), Replica(1, 1))
    assert placement.replicas(0, 7) == ()
    assert placement.replicas_of_layer(0)[2] == (Replica(0, 1),)


def test_ranks_are_routers_then_hosts(generation: Generation) -> None:
    assert (generation.n_routers, generation.n_experts) == (2, 3)
    assert generation.rank_of("e1") == 3
    assert not generation.has("e9")
    with pytest.raises(KeyError, match="e9 is not a member of generation 3"):
        generation.rank_of("e9")


def test_messages_carry_everything(generation: Generation) -> None:
    wire = generation_to_proto(generation).SerializeToString()
    assert generation_from_proto(pb.GenerationSpec.FromString(wire)) == generation
    weights = (Weights(2, "old"), Weights(3, "new"))
    reloading = replace(generation, weights=weights)
    assert generation_from_proto(generation_to_proto(reloading)) == reloading
    hello = hello_to_proto(member_info("r0"), 2, 3, running=generation)
    assert member_from_proto(hello) == member_info("r0")
    assert generation_from_proto(hello.running) == generation
    assert (hello.generation, hello.seen_generation) == (2, 3)
    load = Load(5, (1, 2), 3, 4, {"gate": 0.5}, 100, 7, 8, 9, 10, (11, 12), 13, 14, 15, 1.5, 16, 17, 18, 19)
    assert 0 not in astuple(load), "every figure is told"
    assert load_from_proto(load_to_proto(load)) == load


def test_a_hello_without_role_is_refused() -> None:
    with pytest.raises(WireError, match="must have a role"):
        member_from_proto(pb.Hello(incarnation="x"))


def test_loads_are_added_up_over_routers_and_gateways(generation: Generation) -> None:
    table = LoadTable()
    table.report("r0", Load(10, (1, 2, 3)), 0.0)
    table.report("r1", Load(20, (4, 5, 6)), 0.0)
    table.report("e0", Load(7), 0.0)
    table.report("g0", Load(outstanding_requests=2), 0.0)
    table.report("g1", Load(outstanding_requests=3), 0.0)
    assert [load.tokens for load in table.members(generation)] == [10, 20, 7, 0, 0]
    assert table.expert_rows(generation) == [5, 7, 9]
    assert table.outstanding_requests == 5
    table.forget("r1")
    table.forget("g0")
    assert table.expert_rows(generation) == [1, 2, 3]
    assert table.outstanding_requests == 3


def test_a_member_takes_only_news() -> None:
    track = GenerationTrack()
    assert not track.go_live(1)
    assert track.prepare(4)
    assert not track.prepare(4)
    assert not track.prepare(3)
    assert not track.wake(4, 1)
    assert track.go_live(4)
    assert not track.go_live(4)
    assert track.wake(4, 1)
    assert not track.wake(4, 1)
    assert track.abandon(3) is AbandonNews.ALREADY_OUT
    assert track.abandon(4) is AbandonNews.ASKED
    assert track.abandon(4) is AbandonNews.ASKED_BEFORE
    assert track.live == 0
    assert not track.wake(4, 2)
    assert track.generation == 4
    track.abandoned(4)
    assert (track.generation, track.seen_generation) == (0, 4)
    assert track.abandon(4) is AbandonNews.ALREADY_OUT


def test_a_member_tracks_a_change_beside_its_live_generation() -> None:
    track = GenerationTrack()
    track.prepare(1)
    track.go_live(1)
    assert track.prepare(2)
    assert (track.generation, track.next_generation, track.live) == (1, 2, 1)
    assert not track.go_live(2), "another one runs"
    assert not track.switch(1, 3), "it prepares another one"
    assert track.switch(1, 2)
    assert not track.switch(1, 2)
    assert track.wake(1, 1)
    assert track.wake(2, 2), "some may have gone over already"
    assert not track.wake(2, 1)
    track.switched(1)
    assert (track.generation, track.next_generation, track.live) == (2, 1, 2)
    assert track.abandon(1) is AbandonNews.ASKED
    track.abandoned(1)
    assert (track.generation, track.next_generation) == (2, 0)


def test_a_member_tracks_a_change_that_it_is_not_part_of() -> None:
    track = GenerationTrack()
    track.prepare(1)
    track.go_live(1)
    assert track.switch(1, 2)
    track.switched(1)
    assert (track.generation, track.live) == (1, 0)
    track.abandoned(1)
    assert track.generation == 0


def test_a_dropped_change_is_not_switched_to() -> None:
    track = GenerationTrack()
    track.prepare(1)
    track.go_live(1)
    track.prepare(2)
    assert track.abandon(2) is AbandonNews.ASKED
    assert not track.switch(1, 2)
    track.abandoned(2)
    assert (track.generation, track.next_generation, track.live) == (1, 0, 1)


def test_cluster_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, expertmesh.cluster.coordinator, expertmesh.cluster.member\n"
        "sys.exit(' '.join(m for m in ('torch', 'ray') if m in sys.modules) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
