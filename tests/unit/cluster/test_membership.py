"""The state machine, event by event."""

from __future__ import annotations

import pytest
from fake_member import member_info

from expertmesh.cluster.actions import Abandon, Exclude, Live, Message, Prepare, PublishTopology, Wake
from expertmesh.cluster.membership import LEFT_AS_ASKED, Membership, MembershipRules, Send, State
from expertmesh.cluster.placement.contiguous import ContiguousPlacer


class Driver:
    """A machine with a clock that the test moves, and what it last sent to routers and hosts."""

    def __init__(self, n_routers: int = 1, n_experts: int = 2) -> None:
        rules = MembershipRules(
            n_routers, n_experts, deadline_s=10, report_s=5, prepare_s=30, announce_s=2, retry_s=1
        )
        self.machine = Membership(rules, ContiguousPlacer(2, 8))
        self.now_s = 100.0
        self.sent: dict[str, list[Message]] = {}

    def take(self, actions: tuple[Send, ...]) -> None:
        self.sent = {}
        for action in actions:
            self.sent.setdefault(action.incarnation, []).append(action.message)

    def join(self, *names: str, generation: int = 0, seen: int = 0) -> None:
        for name in names:
            self.take(self.machine.joined(member_info(name), generation, seen, self.now_s))

    def prepared(self, number: int, *names: str) -> None:
        for name in names:
            self.take(self.machine.prepared(name, number, self.now_s))

    def abandoned(self, number: int, *names: str) -> None:
        for name in names:
            self.take(self.machine.abandoned(name, number, self.now_s))

    def tick_after(self, seconds: float, *, heard: tuple[str, ...] = ()) -> None:
        self.now_s += seconds
        for name in heard:
            self.machine.heard(name, self.now_s)
        self.take(self.machine.tick(self.now_s))

    @property
    def state(self) -> State:
        return self.machine.view().state

    @property
    def reason(self) -> str:
        return self.machine.view().reason

    def preparing(self) -> list[str]:
        """Members that were just sent Prepare, in rank order."""
        specs = [m.generation for ms in self.sent.values() for m in ms if isinstance(m, Prepare)]
        assert all(spec == specs[0] for spec in specs)
        assert {n for n, ms in self.sent.items() if any(isinstance(m, Prepare) for m in ms)} == {
            m.incarnation for spec in specs[:1] for m in spec.members
        }
        return [m.incarnation for m in specs[0].members] if specs else []


@pytest.fixture
def running() -> Driver:
    """Generation 1 of r0, e0, e1 is live."""
    d = Driver()
    d.join("e0", "r0", "e1")
    d.prepared(1, "r0", "e0", "e1")
    assert d.state is State.RUNNING
    return d


def test_the_first_generation_waits_for_the_configured_counts() -> None:
    d = Driver()
    d.join("e0", "e1")
    assert d.state is State.WAITING
    assert d.reason == "0 of at least 1 routers and 2 of at least 2 expert hosts are there"
    d.join("r0")
    assert d.preparing() == ["r0", "e0", "e1"]
    d.prepared(1, "r0", "e0", "e0")
    assert d.sent == {}
    d.prepared(1, "e1")
    assert d.sent == {name: [Live(1)] for name in ("r0", "e0", "e1")}


def test_gateways_are_told_at_join_and_at_each_change(running: Driver) -> None:
    running.join("g0")
    assert running.sent == {"g0": [PublishTopology()]}
    running.take(running.machine.left("e1", running.now_s))
    assert running.sent["g0"] == [PublishTopology()]
    assert running.state.public == "forming"
    shown = running.machine.view().generation
    assert shown is not None
    assert shown.number == 1


def test_a_loss_makes_the_survivors_leave_and_form_anew(running: Driver) -> None:
    running.take(running.machine.left("e1", running.now_s))
    why = "expert host e1 (pid 100 on node-1) was lost: its stream ended"
    assert running.sent == {"r0": [Abandon(1, why)], "e0": [Abandon(1, why)]}
    running.abandoned(1, "r0")
    assert running.sent == {}
    running.abandoned(1, "e0")
    assert running.preparing() == ["r0", "e0"]
    assert running.reason == why
    running.prepared(2, "r0", "e0")
    assert running.reason == ""


def test_joins_during_one_formation_are_taken_in_together(running: Driver) -> None:
    running.join("e2")
    running.join("r1")
    running.abandoned(1, "r0", "e0", "e1")
    assert running.preparing() == ["r0", "r1", "e0", "e1", "e2"]
    running.join("e3")
    running.join("e4")
    assert running.sent == {}
    running.prepared(2, "r0", "r1", "e0", "e1", "e2")
    assert running.sent["r0"] == [Live(2), Abandon(2, "2 members join")]


def test_who_does_not_answer_is_out(running: Driver) -> None:
    running.take(running.machine.left("e1", running.now_s))
    running.abandoned(1, "r0")
    assert running.machine.next_deadline_s() == running.now_s + 5
    running.tick_after(5, heard=("r0", "e0"))
    assert running.sent == {"e0": [Exclude("did not leave generation 1 within 5 s")]}
    assert running.state is State.WAITING
    assert running.reason.startswith("1 of at least 1 routers and 0 of at least 1 expert hosts")
    running.join("e0")
    assert running.sent == {"e0": [Exclude("did not leave generation 1 within 5 s")]}
    running.join("e2")
    assert running.preparing() == ["r0", "e2"]


def test_the_silent_are_out(running: Driver) -> None:
    running.tick_after(10, heard=("r0", "e0"))
    assert running.sent["e1"] == [Exclude("no heartbeat for 10 s")]
    assert [type(m) for m in running.sent["r0"]] == [Abandon]


def test_an_accusation_makes_all_leave_at_most_once_a_second(running: Driver) -> None:
    running.take(running.machine.accuse("r0", 1, "all-gather timed out", running.now_s))
    assert sorted(running.sent) == ["e0", "e1", "r0"]
    assert "all-gather timed out" in running.reason
    running.abandoned(1, "r0", "e0", "e1")
    assert running.preparing() == []
    running.tick_after(1)
    assert running.preparing() == ["r0", "e0", "e1"]
    running.prepared(2, "r0", "e0", "e1")
    running.tick_after(5, heard=("r0", "e0", "e1"))
    running.take(running.machine.accuse("r0", 1, "late", running.now_s))
    assert running.sent == {}
    running.take(running.machine.accuse("r0", 2, "again", running.now_s))
    running.abandoned(2, "r0", "e0", "e1")
    running.tick_after(0)
    assert running.preparing() == ["r0", "e0", "e1"]


def test_a_failed_preparation_is_tried_again_and_the_third_failure_excludes() -> None:
    d = Driver()
    d.join("r0", "e0", "e1")
    for number in (1, 2):
        d.prepared(number, "r0")
        d.take(d.machine.prepare_failed("e1", number, "model.safetensors: no such file", d.now_s))
        assert "e1 (pid 100 on node-1) failed to prepare: model.safetensors" in d.reason
        d.abandoned(number, "r0", "e0", "e1")
        d.tick_after(1, heard=("r0", "e0", "e1"))
        assert d.preparing() == ["r0", "e0", "e1"]
    d.take(d.machine.prepare_failed("e1", 3, "no such file", d.now_s))
    assert d.sent["e1"] == [Exclude("failed to prepare 3 times in a row, last: no such file")]


def test_a_loss_during_the_pause_after_a_failure_ends_the_pause() -> None:
    d = Driver()
    d.join("r0", "e0", "e1")
    d.prepared(1, "r0", "e0", "e1")
    d.join("e2")
    d.abandoned(1, "r0", "e0", "e1")
    d.take(d.machine.prepare_failed("r0", 2, "cannot reach e2", d.now_s))
    d.take(d.machine.left("e2", d.now_s))
    d.abandoned(2, "r0", "e0", "e1")
    assert d.preparing() == ["r0", "e0", "e1"]


def test_a_preparation_that_takes_too_long_is_dropped() -> None:
    d = Driver()
    d.join("r0", "e0", "e1")
    d.prepared(1, "r0", "e0")
    d.tick_after(30, heard=("r0", "e0", "e1"))
    assert d.reason == "expert host e1 (pid 100 on node-1) failed to prepare: not prepared within 30 s"
    assert d.state is State.LEAVING


def test_epochs_rise_by_one(running: Driver) -> None:
    take, machine = running.take, running.machine
    take(machine.wake_request("r0", 1, 2, 0))
    assert running.sent == {}
    take(machine.wake_request("r0", 1, 1, 0))
    assert running.sent == {name: [Wake(1, 1)] for name in ("r0", "e0", "e1")}
    take(machine.wake_request("r0", 1, 1, 0))
    take(machine.wake_request("r0", 2, 2, 0))
    assert running.sent == {}
    assert machine.view().epoch == 1


def test_a_leaver_is_let_go_once_all_have_left_its_generation(running: Driver) -> None:
    running.take(running.machine.leaving("e1", running.now_s))
    assert running.sent["e1"] == [Abandon(1, "expert host e1 (pid 100 on node-1) leaves")]
    running.abandoned(1, "e1")
    assert running.sent == {"e1": [Exclude(LEFT_AS_ASKED)]}
    running.abandoned(1, "r0", "e0")
    assert running.preparing() == ["r0", "e0"]


def test_a_restarted_coordinator_waits_and_goes_on_above() -> None:
    d = Driver(n_routers=2)
    d.join("r0", "e0", generation=7, seen=7)
    d.join("e1", generation=0, seen=9)
    assert d.sent == {}
    assert d.machine.next_deadline_s() == d.now_s + 2
    d.tick_after(2)
    assert d.sent == {n: [Abandon(7, "the coordinator was restarted")] for n in ("r0", "e0")}
    d.abandoned(7, "r0", "e0")
    assert d.preparing() == ["r0", "e0", "e1"]
    assert d.sent["r0"][0].generation.number == 10


def test_a_restarted_coordinator_stops_nothing_that_it_cannot_replace() -> None:
    d = Driver()
    d.join("r0", generation=7, seen=7)
    d.tick_after(2, heard=("r0",))
    assert d.sent == {}
    d.join("e5")
    assert d.sent == {"r0": [Abandon(7, "the coordinator was restarted")]}


def test_who_comes_back_with_an_old_generation_leaves_it_first(running: Driver) -> None:
    running.take(running.machine.left("e1", running.now_s))
    running.abandoned(1, "r0", "e0")
    running.prepared(2, "r0", "e0")
    running.join("e1", generation=1, seen=1)
    assert [type(m) for m in running.sent["e1"]] == [Abandon]
    assert running.state is State.RUNNING
    running.abandoned(1, "e1")
    assert running.reason == "1 members join"


def test_fused_generations_have_routers_only() -> None:
    d = Driver(n_routers=1, n_experts=0)
    d.join("r0")
    assert d.preparing() == ["r0"]
    d.join("e0")
    assert d.sent == {"e0": [Exclude("this deployment is fused: it has no expert hosts")]}


def test_more_hosts_than_experts_are_left_out_and_nothing_stops() -> None:
    d = Driver(n_experts=8)
    hosts = [f"e{i}" for i in range(8)]
    d.join("r0", *hosts)
    d.prepared(1, "r0", *hosts)
    d.join("e8")
    assert d.sent == {}
    assert d.state is State.RUNNING
    assert d.reason.startswith("1 members are left out: 9 expert hosts for 8 experts")
