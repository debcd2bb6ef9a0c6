"""What clients see of load and of changes."""

from __future__ import annotations

import json

import pytest

from expertmesh.actors.gateway.topology import public_expert_load, public_topology, topology_json
from expertmesh.proto.v1 import internal_pb2 as pb

N_EXPERTS = 3
CHANGE = {
    "generation": 7,
    "kind": "scale",
    "reason": "expert host e2 joins",
    "outcome": "live",
    "seconds": 1.5,
    "unix_s": 1e9,
}


@pytest.fixture
def update() -> pb.TopologyUpdate:
    """One router, two hosts, two MoE layers."""
    members = [
        pb.MemberSpec(incarnation="r0", role=pb.ROLE_ROUTER),
        *(pb.MemberSpec(incarnation=f"e{h}", role=pb.ROLE_EXPERTS) for h in range(2)),
    ]
    return pb.TopologyUpdate(
        generation=pb.GenerationSpec(number=7, members=members),
        state="running",
        expert_rows=[10, 20, 30, 40, 50, 60],
        window_expert_rows=[1, 2, 3, 4, 5, 6],
        window_host_rows=[1, 5, 10, 5],
        imbalance=1.25,
        last_change=pb.Change(**CHANGE),
    )


def test_load_is_told_by_layer(update: pb.TopologyUpdate) -> None:
    first, second = public_expert_load(update, N_EXPERTS).layers
    assert (list(first.tokens), list(first.window_tokens)) == ([10, 20, 30], [1, 2, 3])
    assert (list(second.tokens), list(second.window_tokens)) == ([40, 50, 60], [4, 5, 6])
    assert [list(layer.window_host_tokens) for layer in (first, second)] == [[1, 5], [10, 5]]
    shown = topology_json(update, N_EXPERTS)
    assert shown["expert_tokens"][1] == {
        "layer": 1,
        "tokens": [40, 50, 60],
        "window_tokens": [4, 5, 6],
        "window_host_tokens": [10, 5],
    }


def test_load_without_a_window_is_told_without_it(update: pb.TopologyUpdate) -> None:
    for empty in ("window_expert_rows", "window_host_rows"):
        update.ClearField(empty)
    first, _ = public_expert_load(update, N_EXPERTS).layers
    assert (list(first.tokens), list(first.window_tokens), list(first.window_host_tokens)) == (
        [10, 20, 30],
        [],
        [],
    )


def test_changes_and_imbalance_are_told(update: pb.TopologyUpdate) -> None:
    shown = topology_json(update, N_EXPERTS)
    assert (shown["last_change"], shown["change"], shown["imbalance"]) == (CHANGE, None, 1.25)
    assert not public_topology(update).HasField("change")
    update.change.CopyFrom(pb.Change(generation=8, kind="rebalance", outcome="under way"))
    shown = topology_json(update, N_EXPERTS)
    assert (shown["change"]["kind"], shown["change"]["generation"]) == ("rebalance", 8)
    assert json.loads(json.dumps(shown)) == shown


def test_a_change_is_told_while_nothing_is_live(update: pb.TopologyUpdate) -> None:
    update.state = "forming"
    shown = topology_json(update, N_EXPERTS)
    assert (shown["generation"], shown["imbalance"]) == (0, 0.0)
    assert shown["last_change"] == CHANGE
