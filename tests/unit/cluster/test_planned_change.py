"""Planned changes of generation, event by event."""

from __future__ import annotations

import pytest
from membership_driver import Driver

from expertmesh.cluster.actions import Abandon, Exclude, Live, Prepare, PublishTopology, Switch, Wake
from expertmesh.cluster.state import LEFT_AS_ASKED, State

E1 = "expert host e1 (pid 100 on node-1)"
E2 = "expert host e2 (pid 100 on node-1)"


@pytest.fixture
def running() -> Driver:
    """Generation 1 of r0, e0, e1 is live."""
    d = Driver()
    d.join("e0", "r0", "e1")
    d.prepared(1, "r0", "e0", "e1")
    return d


@pytest.fixture
def preparing(running: Driver) -> Driver:
    """Generation 2, with e2, is prepared beside generation 1."""
    running.join("e2")
    running.tick_after(0.3)
    assert running.state is State.PREPARING
    return running


@pytest.fixture
def switching(preparing: Driver) -> Driver:
    """All have prepared generation 2."""
    preparing.prepared(2, "r0", "e0", "e1", "e2")
    assert preparing.state is State.SWITCHING
    return preparing


def last_change(d: Driver) -> tuple[str, str]:
    change = d.machine.view().last_change
    assert change is not None
    return change.kind, change.outcome


def test_members_that_join_together_make_one_change(running: Driver) -> None:
    running.join("e2")
    assert running.sent == {}
    running.join("r1")
    running.tick_after(0.3)
    assert running.preparing() == ["r0", "r1", "e0", "e1", "e2"]
    assert running.state.public == "running"


def test_a_change_is_prepared_beside_the_live_generation_and_switched_to(preparing: Driver) -> None:
    preparing.prepared(2, "e2", "r0", "e0")
    assert preparing.sent == {}
    preparing.prepared(2, "e1")
    for name in ("r0", "e0", "e1"):
        assert preparing.sent[name] == [Switch(1, 2), Wake(1, 1)]
    assert preparing.sent["e2"] == [Live(2, epoch=1)]
    preparing.abandoned(1, "r0", "e0")
    assert preparing.state is State.SWITCHING
    preparing.abandoned(1, "e1")
    assert preparing.state is State.RUNNING
    view = preparing.machine.view()
    assert view.generation is not None
    assert (view.generation.number, view.epoch, view.change) == (2, 1, None)
    assert last_change(preparing) == ("scale", "live")


def test_a_leaver_goes_when_all_have_switched(running: Driver) -> None:
    running.leave("e1")
    assert running.sent == {}
    running.tick_after(0.3)
    assert running.preparing() == ["r0", "e0"]
    running.prepared(2, "r0", "e0")
    assert running.sent["e1"] == [Switch(1, 2), Wake(1, 1)]
    running.abandoned(1, "e1")
    assert running.sent == {}
    running.abandoned(1, "r0", "e0")
    assert running.sent == {"e1": [Exclude(LEFT_AS_ASKED)]}


def test_leaves_and_joins_at_once_are_one_change(running: Driver) -> None:
    running.leave("r0", "e0")
    running.join("r1", "e2")
    running.tick_after(0.3)
    assert running.preparing() == ["r1", "e1", "e2"]


def test_a_failure_to_prepare_is_rolled_back_and_tried_again_later(preparing: Driver) -> None:
    preparing.take(preparing.machine.prepare_failed("e0", 2, "model.safetensors: gone", preparing.now_s))
    assert {n: [type(m) for m in ms] for n, ms in preparing.sent.items()} == {
        n: [Abandon] for n in ("r0", "e0", "e1", "e2")
    }
    assert preparing.state is State.RUNNING
    assert last_change(preparing) == ("scale", "rolled back")
    change = preparing.machine.view().last_change
    assert change is not None
    assert "e0 (pid 100 on node-1) failed to prepare: model.safetensors: gone" in change.reason
    preparing.abandoned(2, "r0", "e0", "e1", "e2")
    preparing.tick_after(4.9, heard=("r0", "e0", "e1", "e2"))
    assert preparing.sent == {}
    preparing.tick_after(0.1)
    assert preparing.preparing() == ["r0", "e0", "e1", "e2"]


def test_a_newcomer_that_fails_again_and_again_is_out_and_a_live_member_is_not(preparing: Driver) -> None:
    names = ("r0", "e0", "e1", "e2")
    for number, pauses in ((2, 1), (3, 2)):
        preparing.take(preparing.machine.prepare_failed("e2", number, "no memory", preparing.now_s))
        preparing.abandoned(number, *names)
        for _ in range(pauses):
            preparing.tick_after(5, heard=names)
        assert preparing.preparing() == list(names)
    preparing.take(preparing.machine.prepare_failed("e2", 4, "no memory", preparing.now_s))
    assert preparing.sent["e2"] == [Exclude("failed to prepare 3 times in a row, last: no memory")]
    assert preparing.state is State.RUNNING
    preparing.abandoned(4, "r0", "e0", "e1")
    preparing.tick_after(5, heard=names)
    assert preparing.sent == {}
    assert preparing.machine.view().change is None


def test_a_preparation_that_takes_too_long_is_rolled_back(preparing: Driver) -> None:
    preparing.prepared(2, "r0", "e0", "e1")
    for _ in range(10):
        preparing.tick_after(3, heard=("r0", "e0", "e1", "e2"))
    assert preparing.state is State.RUNNING
    change = preparing.machine.view().last_change
    assert change is not None
    assert f"{E2} failed to prepare: not prepared within 30 s" in change.reason


def test_a_newcomer_that_dies_before_the_switch_harms_nobody(preparing: Driver) -> None:
    preparing.take(preparing.machine.left("e2", preparing.now_s))
    assert preparing.sent == {
        n: [Abandon(2, f"{E2} was lost: its stream ended")] for n in ("r0", "e0", "e1")
    }
    assert preparing.state is State.RUNNING
    preparing.abandoned(2, "r0", "e0", "e1")
    preparing.tick_after(1)
    assert preparing.sent == {}


@pytest.mark.parametrize("lost", ["e0", "r0"])
def test_a_live_member_that_dies_ends_both_generations(preparing: Driver, lost: str) -> None:
    preparing.join("r1")
    preparing.take(preparing.machine.left(lost, preparing.now_s))
    staying = {"r0", "e0", "e1"} - {lost}
    for name in staying:
        assert [(type(m), m.number) for m in preparing.sent[name] if isinstance(m, Abandon)] == [
            (Abandon, 1),
            (Abandon, 2),
        ]
    assert preparing.state is State.LEAVING
    for name in staying:
        preparing.abandoned(1, name)
    preparing.abandoned(2, *staying, "e2")
    assert preparing.preparing()
    assert preparing.state is State.FORMING


def test_there_is_no_way_back_from_a_switch(switching: Driver) -> None:
    switching.take(switching.machine.prepare_failed("e0", 2, "too late", switching.now_s))
    assert switching.sent == {}
    switching.abandoned(1, "r0")
    switching.take(switching.machine.left("e2", switching.now_s))
    assert [m.number for m in switching.sent["r0"] if isinstance(m, Abandon)] == [2]
    assert [m.number for m in switching.sent["e0"] if isinstance(m, Abandon)] == [1, 2]
    switching.abandoned(1, "e0", "e1")
    switching.abandoned(2, "r0", "e0", "e1")
    assert switching.preparing() == ["r0", "e0", "e1"]


def test_a_switch_that_gets_stuck_is_broken_off(switching: Driver) -> None:
    switching.abandoned(1, "r0", "e0")
    for _ in range(10):
        switching.tick_after(3, heard=("r0", "e0", "e1", "e2"))
    assert switching.state is State.LEAVING
    assert switching.reason == f"{E1} did not switch to generation 2 within 30 s"


def test_work_that_comes_during_a_switch_wakes_the_successor(switching: Driver) -> None:
    switching.abandoned(1, "r0")
    switching.take(switching.machine.wake_request("r0", 2, 2, switching.now_s))
    assert switching.sent == {name: [Wake(2, 2)] for name in ("r0", "e0", "e1", "e2")}
    switching.abandoned(1, "e0", "e1")
    assert switching.machine.view().epoch == 2


def test_a_collective_that_fails_in_either_generation_ends_both(switching: Driver) -> None:
    switching.take(switching.machine.accuse("e2", 2, "no header came", switching.now_s))
    assert switching.state is State.LEAVING
    assert "no header came" in switching.reason


def test_who_leaves_when_nobody_can_take_over_is_let_go_without_a_successor(running: Driver) -> None:
    running.leave("e0", "e1", "r0")
    assert running.sent == {}
    running.tick_after(0.3)
    assert [type(m) for m in running.sent["e0"]] == [Abandon]
    running.abandoned(1, "r0", "e0", "e1")
    assert running.state is State.WAITING


def test_when_all_of_one_kind_leave_they_stay_until_others_have_come(running: Driver) -> None:
    running.leave("e0", "e1")
    running.tick_after(0.3)
    assert running.sent == {}
    assert running.reason == "1 of at least 1 routers and 0 of at least 1 expert hosts are there"
    running.join("e2")
    running.tick_after(0.3)
    assert running.preparing() == ["r0", "e2"]
    running.prepared(2, "r0", "e2")
    running.abandoned(1, "r0", "e0", "e1")
    assert running.state is State.RUNNING


def test_a_draining_deployment_hands_nothing_over(running: Driver) -> None:
    running.take(running.machine.drain(running.now_s))
    assert running.sent == {}
    running.leave("e1")
    assert [type(m) for m in running.sent["e0"]] == [Abandon]
    running.abandoned(1, "r0", "e0", "e1")
    assert running.preparing() == []
    assert "the deployment ends" in running.reason


def test_gateways_hear_of_a_change_at_its_start_and_end(running: Driver) -> None:
    running.join("g0", "e2")
    running.tick_after(0.3)
    assert running.sent["g0"] == [PublishTopology()]
    change = running.machine.view().change
    assert change is not None
    assert (change.generation, change.kind, change.reason) == (2, "scale", f"{E2} joins")
    assert any(isinstance(m, Prepare) for m in running.sent["e2"])
