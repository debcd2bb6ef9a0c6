"""The member's side of generations: what the engine thread sees of the coordinator's messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.follower import GenerationFollower

PATIENCE_S = 20.0


@dataclass
class Communicator:
    """As much of a communicator as the follower touches."""

    abandoned: str | None = None
    closed: threading.Event = field(default_factory=threading.Event)

    def abandon(self, reason: str) -> None:
        self.abandoned = reason

    def close(self) -> None:
        self.closed.set()


@dataclass
class Link:
    number: int
    communicator: Any = field(default_factory=Communicator)


class Reports:
    """Collects what the member says; `wait_for` blocks until it has said it."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()

    def _say(self, *what: Any) -> None:
        with self._changed:
            self.said.append(what)
            self._changed.notify_all()

    def wait_for(self, *what: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what in self.said, PATIENCE_S), (
                f"{what} not in {self.said}"
            )

    def prepared(self, generation: int) -> None:
        self._say("prepared", generation)

    def prepare_failed(self, generation: int, reason: str, unmet: bool = False) -> None:
        self._say("prepare_failed", generation, reason)

    def abandoned(self, generation: int) -> None:
        self._say("abandoned", generation)

    def switched(self, generation: int) -> None:
        self._say("switched", generation)

    def accuse(self, generation: int, reason: str) -> None:
        self._say("accuse", generation, reason)

    def wake_request(self, generation: int, epoch: int) -> None:
        self._say("wake_request", generation, epoch)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def follower(reports: Reports) -> Iterator[GenerationFollower[Link]]:
    follower: GenerationFollower[Link] = GenerationFollower(reports)
    yield follower
    follower.stop()
    follower.close(PATIENCE_S)


def make_live(follower: GenerationFollower[Link], reports: Reports, number: int, **link: Any) -> Link:
    made = Link(number, **link)
    follower.on_prepare(number, lambda abandoned: made)
    reports.wait_for("prepared", number)
    follower.on_live(number)
    return made


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except GenerationLostError as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def test_a_generation_is_prepared_in_the_background_and_then_live(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    thread, got = in_thread(follower.wait_for_generation)
    link = make_live(follower, reports, 1)
    thread.join(PATIENCE_S)
    assert got == [link]
    assert follower.live_number == 1


def test_a_failed_preparation_is_reported_with_its_reason(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    def build(abandoned: Callable[[], str | None]) -> Link:
        raise OSError("the disk is on fire")

    follower.on_prepare(1, build)
    reports.wait_for("prepare_failed", 1, "OSError: the disk is on fire")


def test_lower_numbers_and_repeats_are_ignored(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    make_live(follower, reports, 5)
    for number in (5, 4):
        follower.on_prepare(number, lambda abandoned: pytest.fail("must not be built"))
    assert reports.said == [("prepared", 5)]


def test_work_while_parked_asks_once_for_the_next_epoch(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    make_live(follower, reports, 1)
    thread, got = in_thread(lambda: follower.wait_until_awake(lambda: True))
    reports.wait_for("wake_request", 1, 1)
    follower.notify()
    follower.on_wake(2, 1)  # another generation's
    follower.on_wake(1, 1)
    thread.join(PATIENCE_S)
    assert got == [True]
    assert reports.said.count(("wake_request", 1, 1)) == 1
    # A duplicate of the epoch that has been entered wakes nobody; the next one does.
    follower.on_wake(1, 1)
    thread, got = in_thread(lambda: follower.wait_until_awake(lambda: False))
    follower.on_wake(1, 2)
    thread.join(PATIENCE_S)
    assert got == [True]


def test_a_wake_that_comes_before_parking_is_not_lost(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    make_live(follower, reports, 1)
    follower.on_wake(1, 1)
    assert follower.wait_until_awake(lambda: False)
    follower.on_wake(1, 2)  # while the engine is still inside epoch 1
    assert follower.wait_until_awake(lambda: False)


def test_without_a_communicator_work_alone_wakes(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    make_live(follower, reports, 1, communicator=None)
    assert follower.wait_until_awake(lambda: True)
    assert reports.said == [("prepared", 1)]


def test_abandoning_breaks_the_communicator_and_is_answered_once_outside(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    link = make_live(follower, reports, 1)
    thread, got = in_thread(lambda: follower.wait_until_awake(lambda: False))
    follower.on_abandon(1, "host 3 died")
    thread.join(PATIENCE_S)
    assert isinstance(got[0], GenerationLostError)
    assert "host 3 died" in str(got[0])
    assert link.communicator.abandoned == "host 3 died"
    assert ("abandoned", 1) not in reports.said, "the engine thread has not left yet"
    follower.lost(got[0])
    reports.wait_for("abandoned", 1)
    assert link.communicator.closed.wait(PATIENCE_S)
    assert ("accuse", 1, "host 3 died") not in reports.said, "the coordinator knows already"


def test_a_broken_collective_accuses_and_waits_for_the_verdict(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    make_live(follower, reports, 1)
    thread, _ = in_thread(lambda: follower.lost(GenerationLostError(1, "E0 closed its connection")))
    reports.wait_for("accuse", 1, "E0 closed its connection")
    assert ("abandoned", 1) not in reports.said
    follower.on_abandon(1, "E0 died")
    thread.join(PATIENCE_S)
    reports.wait_for("abandoned", 1)
    link = make_live(follower, reports, 2)
    assert follower.wait_for_generation() is link


def test_a_generation_given_up_while_it_is_prepared_never_lives(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    reasons: list[str | None] = []
    link = Link(1)

    def build(abandoned: Callable[[], str | None]) -> Link:
        begun.set()
        go_on.wait(PATIENCE_S)
        reasons.append(abandoned())
        return link

    follower.on_prepare(1, build)
    assert begun.wait(PATIENCE_S)
    follower.on_abandon(1, "too late")
    reports.wait_for("abandoned", 1)
    go_on.set()
    assert link.communicator.closed.wait(PATIENCE_S)
    follower.on_live(1)
    assert follower.live_number == 0
    assert reasons == ["too late"]
    assert ("prepared", 1) not in reports.said


def test_stop_ends_every_wait(follower: GenerationFollower[Link], reports: Reports) -> None:
    thread, got = in_thread(follower.wait_for_generation)
    follower.stop()
    thread.join(PATIENCE_S)
    assert got == [None]


def switch(follower: GenerationFollower[Link], reports: Reports) -> tuple[Link, Link]:
    """Generation 1 is live, generation 2 prepared beside it, and all are to go over."""
    old = make_live(follower, reports, 1)
    new = Link(2)
    follower.on_prepare(2, lambda abandoned: new)
    reports.wait_for("prepared", 2)
    assert follower.successor == 0
    follower.on_switch(1, 2)
    assert follower.successor == 2
    return old, new


def test_the_successor_is_entered_at_once_and_the_old_link_kept_until_its_first_step(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    old, new = switch(follower, reports)
    follower.switch(2)
    assert follower.wait_for_generation() is new
    assert follower.wait_until_awake(lambda: False)
    assert follower.successor == 0
    reports.wait_for("switched", 1)
    assert ("abandoned", 1) not in reports.said
    follower.stepped()
    reports.wait_for("abandoned", 1)
    assert old.communicator.closed.wait(PATIENCE_S)
    follower.stepped()
    assert reports.said.count(("abandoned", 1)) == 1


def test_who_is_not_part_of_the_successor_is_left_without_a_generation(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    make_live(follower, reports, 1)
    follower.on_switch(1, 2)
    follower.switch(2)
    reports.wait_for("abandoned", 1)
    assert follower.live_number == 0


def test_both_generations_can_be_given_up_around_a_switch(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    old, new = switch(follower, reports)
    follower.switch(2)
    follower.on_abandon(1, "R1 died")
    reports.wait_for("abandoned", 1)
    assert old.communicator.closed.wait(PATIENCE_S)
    follower.on_abandon(2, "R1 died")
    assert new.communicator.abandoned == "R1 died"
    assert ("abandoned", 2) not in reports.said
    with pytest.raises(GenerationLostError, match="R1 died"):
        follower.wait_until_awake(lambda: True)
    follower.lost(GenerationLostError(2, "R1 died"))
    reports.wait_for("abandoned", 2)


def test_a_generation_given_up_in_its_last_step_is_left_at_the_switch(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    old, new = switch(follower, reports)
    follower.on_abandon(1, "a router accused")
    assert ("abandoned", 1) not in reports.said, "the engine thread is still inside"
    follower.switch(2)
    reports.wait_for("abandoned", 1)
    assert old.communicator.closed.wait(PATIENCE_S)
    follower.on_abandon(2, "a router accused")
    follower.lost(GenerationLostError(2, "reset"))
    reports.wait_for("abandoned", 2)
    assert new.communicator.closed.wait(PATIENCE_S)
    assert [said for said in reports.said if said[0] == "abandoned"] == [("abandoned", 1), ("abandoned", 2)]


def test_a_successor_given_up_before_the_switch_leaves_the_live_generation_alone(
    follower: GenerationFollower[Link], reports: Reports
) -> None:
    live = make_live(follower, reports, 1)
    dropped = Link(2)
    follower.on_prepare(2, lambda abandoned: dropped)
    reports.wait_for("prepared", 2)
    follower.on_abandon(2, "R1 failed to prepare")
    reports.wait_for("abandoned", 2)
    assert dropped.communicator.closed.wait(PATIENCE_S)
    assert follower.wait_for_generation() is live
    assert live.communicator.abandoned is None
