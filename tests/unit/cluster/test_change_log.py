"""The changes that are remembered, and what they brought."""

from __future__ import annotations

from fake_member import member_info

from expertmesh.cluster.change_log import N_REMEMBERED, ChangeLog, copies_placed
from expertmesh.cluster.load import LoadTable
from expertmesh.cluster.state import State, View
from expertmesh.cluster.topology import topology_update
from expertmesh.cluster.types import Generation, Placement

ROUTER, A, B, C = (member_info(name) for name in ("r", "e1", "e2", "e3"))


def generation(number, hosts, *layers) -> Generation:
    return Generation(number, (ROUTER, *hosts), Placement(layers), "127.0.0.1:1")


TWO = generation(1, (A, B), ((0, 1), (2, 3)), ((0, 1), (2, 3)))
THREE = generation(2, (A, B, C), ((0, 1), (2, 3), (3, 0)), ((1, 0), (3,), (2,)))


def test_copies_count_where_their_host_did_not_hold_them():
    assert copies_placed(None, TWO) == 8
    assert copies_placed(TWO, TWO) == 0
    assert copies_placed(TWO, THREE) == 3
    assert copies_placed(THREE, TWO) == 1  # expert 2 of the second layer goes back to e2


def test_the_last_changes_are_remembered_with_what_they_brought():
    log = ChangeLog()
    log.begin(1, "scale", "a host joins", 10.0)
    log.prepares(2)
    log.live(TWO, THREE, 12.5)
    log.begin(2, "rebalance", "asked for", 20.0)
    log.roll_back(21.0, "no memory")
    scaled, rebalanced = log.ended
    assert (scaled.generation, scaled.outcome, scaled.seconds, scaled.ended_s) == (2, "live", 2.5, 12.5)
    assert (scaled.n_routers, scaled.n_experts, scaled.n_copies_placed) == (1, 3, 3)
    assert (rebalanced.outcome, rebalanced.reason) == ("rolled back", "asked for; no memory")
    assert (log.last, log.current) == (rebalanced, None)
    for i in range(N_REMEMBERED + 5):
        log.begin(i, "rebalance", "", 30.0)
        log.roll_back(31.0, "")
    assert len(log.ended) == N_REMEMBERED
    assert scaled not in log.ended


def test_gateways_are_told_of_all_changes_and_of_who_stands_outside():
    log = ChangeLog()
    log.begin(0, "start", "enough members are there", 1.0)
    log.live(None, TWO, 2.0)
    log.begin(1, "scale", "a host joins", 3.0)
    view = View(State.PREPARING, "", TWO, 1, log.ended, log.current)
    gateway = member_info("g")
    update = topology_update(
        view, LoadTable(), draining=False, targets=None, now_s=4.0, members=(gateway, ROUTER, A, B, C)
    )
    assert [c.kind for c in update.changes] == ["start"]
    assert (update.last_change, update.change.kind) == (update.changes[0], "scale")
    assert update.changes[0].copies_placed == 8
    assert [entry.member.incarnation for entry in update.outside] == ["g", "e3"]
