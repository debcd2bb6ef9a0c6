"""Who is there and which generation runs: the coordinator's state machine, without Ray, sockets or clocks.

Events go in as method calls with the time (`now_s`, any monotonic clock), actions come out. Events only
record facts (who is present, who may still run what, what is broken); `_step` derives every transition
from the facts, so that it does not matter in which order they came.

    WAITING --enough members--> FORMING --all prepared--> RUNNING
       ^                           |                         |
       +---- all have left --- LEAVING <-- loss, join, leave, accusation, failure

A member is *engaged* in a generation from the moment it is sent Prepare until it answers abandoned or is
gone. Only a member that is not engaged is sent Prepare: that is why nobody is ever in two generations.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from expertmesh.cluster.actions import (
    Abandon,
    Exclude,
    Live,
    Message,
    Prepare,
    PublishTopology,
    Send,
    Wake,
)
from expertmesh.cluster.placement import PlacementError
from expertmesh.cluster.types import Generation, MemberInfo, Placement, Role

LEFT_AS_ASKED = "left as asked"
"""Why a member is excluded that wanted to leave."""

Place = Callable[[int], Placement]
"""From the number of expert hosts to a placement; raises PlacementError."""


class State(enum.Enum):
    """Where the machine stands."""

    WAITING = "waiting"
    """Not enough members, or a pause before a new try."""
    LEAVING = "leaving"
    """Members were asked to leave a generation and have not all answered."""
    FORMING = "forming"
    RUNNING = "running"

    @property
    def public(self) -> str:
        """What clients are told: "waiting", "forming" or "running"."""
        return "forming" if self is State.LEAVING else self.value


@dataclass(frozen=True, slots=True)
class MembershipRules:
    """Counts and deadlines; from the deployment's configuration."""

    n_routers: int
    """Routers that the first generation waits for."""
    n_experts: int
    """Expert hosts that the first generation waits for; 0 is the fused mode."""
    deadline_s: float
    """No message for this long: the member is taken for frozen."""
    report_s: float
    """A member asked to leave a generation answers within this, or is out."""
    prepare_s: float
    announce_s: float
    """How long a restarted coordinator waits for the members that still run."""
    retry_s: float = 1.0
    """Between a failed preparation and the next try, as long as nobody was lost."""
    max_strikes: int = 3
    """A member that fails to prepare this often in a row is out (Serve starts a fresh one)."""


@dataclass(frozen=True, slots=True)
class View:
    """What the machine tells about itself."""

    state: State
    reason: str
    """Why it is not running, or why somebody is left out."""
    generation: Generation | None
    """The live generation; while not running the last live one."""
    epoch: int
    """How often the live generation was woken."""


@dataclass(slots=True)
class _Member:
    info: MemberInfo
    heard_s: float
    engaged: int = 0
    """The generation that it may be in or preparing; 0 is none."""
    abandon_by_s: float | None = None
    """Set once it was asked to leave the generation that it is engaged in."""
    leaving: bool = False
    strikes: int = 0


class Membership:
    """The state machine. Every event method returns what is to be done, in order."""

    def __init__(self, rules: MembershipRules, place: Place) -> None:
        self._rules = rules
        self._place = place
        self._state = State.WAITING
        self._reason = "nobody has joined yet"
        self._members: dict[str, _Member] = {}
        """In the order of joining, which is the order of ranks within a role."""
        self._excluded: dict[str, str] = {}
        self._number = 0
        """The highest generation number known."""
        self._current: Generation | None = None
        """The generation that is forming or running."""
        self._shown: Generation | None = None
        self._prepared: set[str] = set()
        self._why = ""
        """Why the last generation was left; empty once the next one is live."""
        self._broken = ""
        """Why the current generation has to be left; empty while it need not."""
        self._epoch = 0
        self._settled_in = False
        """A generation was live once, here or before the coordinator's restart: from then on any router
        and any host make a generation."""
        self._has_formed = False
        self._not_before_s: float | None = None
        """No formation before this: members are announcing themselves, or a failed try is to be spaced."""
        self._prepare_by_s = 0.0
        self._live_since_s = 0.0
        self._outbox: list[Send] = []
        self._published = ("", "", 0)

    # ------------------------------------------------------------------ events

    def joined(
        self, info: MemberInfo, generation: int, seen_generation: int, now_s: float
    ) -> tuple[Send, ...]:
        """A member's Hello: `generation` is what it runs or prepares (0: none)."""
        if info.incarnation in self._excluded:
            self._send(info.incarnation, Exclude(self._excluded[info.incarnation]))
            return self._settle(now_s)
        if info.incarnation in self._members:
            self._remove(info.incarnation, "came back on a new stream")
        self._number = max(self._number, generation, seen_generation)
        member = _Member(info, heard_s=now_s, engaged=generation)
        self._members[info.incarnation] = member
        if info.role is Role.GATEWAY:
            self._send(info.incarnation, PublishTopology())
        elif info.role is Role.EXPERTS and self._rules.n_experts == 0:
            self._exclude(info.incarnation, "this deployment is fused: it has no expert hosts")
        elif max(generation, seen_generation) > 0 and not self._has_formed:
            self._settled_in = True
            if self._not_before_s is None:
                self._not_before_s = now_s + self._rules.announce_s
        elif generation > 0:
            self._tell_to_abandon(member, "its stream to the coordinator was broken", now_s)
        return self._settle(now_s)

    def left(self, incarnation: str, now_s: float) -> tuple[Send, ...]:
        """The member's stream has ended: it is dead."""
        self._remove(incarnation, "its stream ended")
        return self._settle(now_s)

    def leaving(self, incarnation: str, now_s: float) -> tuple[Send, ...]:
        """The member wants to leave; it is excluded with LEFT_AS_ASKED as soon as nothing needs it."""
        if member := self._members.get(incarnation):
            member.leaving = True
        return self._settle(now_s)

    def heard(self, incarnation: str, now_s: float) -> None:
        """Any message has come from the member."""
        if member := self._members.get(incarnation):
            member.heard_s = now_s

    def prepared(self, incarnation: str, number: int, now_s: float) -> tuple[Send, ...]:
        """The member has weights and process group of a generation ready."""
        if self._takes_part(incarnation, number, State.FORMING):
            self._prepared.add(incarnation)
        return self._settle(now_s)

    def prepare_failed(self, incarnation: str, number: int, reason: str, now_s: float) -> tuple[Send, ...]:
        """The member could not prepare a generation."""
        if self._takes_part(incarnation, number, State.FORMING):
            self._not_before_s = now_s + self._rules.retry_s
            self._strike(incarnation, reason)
        return self._settle(now_s)

    def abandoned(self, incarnation: str, number: int, now_s: float) -> tuple[Send, ...]:
        """The member is out of a generation and of everything that it prepared for it."""
        member = self._members.get(incarnation)
        if member and member.engaged == number and number > 0:
            member.engaged = 0
            member.abandon_by_s = None
            if self._current and self._current.number == number:
                self._break(f"{member.info.label} left generation {number} by itself")
        return self._settle(now_s)

    def accuse(self, incarnation: str, number: int, reason: str, now_s: float) -> tuple[Send, ...]:
        """A collective failed at this member. Asking all to leave is the check: who is silent is out."""
        if self._takes_part(incarnation, number, State.RUNNING):
            self._not_before_s = max(now_s, self._live_since_s + self._rules.retry_s)
            self._break(f"{self._members[incarnation].info.label}: {reason}")
        return self._settle(now_s)

    def wake_request(self, incarnation: str, number: int, epoch: int, now_s: float) -> tuple[Send, ...]:
        """Work has come to a parked member; all are woken once for each epoch."""
        if self._takes_part(incarnation, number, State.RUNNING) and epoch == self._epoch + 1:
            assert self._current is not None
            self._epoch = epoch
            for info in self._current.members:
                self._send(info.incarnation, Wake(number, epoch))
        return self._settle(now_s)

    def tick(self, now_s: float) -> tuple[Send, ...]:
        """Time has passed; see `next_deadline_s`."""
        rules = self._rules
        for incarnation, member in list(self._members.items()):
            if member.heard_s + rules.deadline_s <= now_s:
                self._exclude(incarnation, f"no heartbeat for {rules.deadline_s:g} s")
            elif member.abandon_by_s is not None and member.abandon_by_s <= now_s:
                why = f"did not leave generation {member.engaged} within {rules.report_s:g} s"
                self._exclude(incarnation, why)
        if self._state is State.FORMING and self._prepare_by_s <= now_s:
            assert self._current is not None
            late = [m.incarnation for m in self._current.members if m.incarnation not in self._prepared]
            for incarnation in late:
                self._strike(incarnation, f"not prepared within {rules.prepare_s:g} s")
        if self._not_before_s is not None and self._not_before_s <= now_s:
            self._not_before_s = None
        return self._settle(now_s)

    # ------------------------------------------------------------------ questions

    def next_deadline_s(self) -> float | None:
        """When `tick` has something to do at the earliest; None for never."""
        due = [m.heard_s + self._rules.deadline_s for m in self._members.values()]
        due += [m.abandon_by_s for m in self._members.values() if m.abandon_by_s is not None]
        if self._state is State.FORMING:
            due.append(self._prepare_by_s)
        if self._not_before_s is not None:
            due.append(self._not_before_s)
        return min(due, default=None)

    def view(self) -> View:
        """The state as of the last event."""
        return View(self._state, self._reason, self._shown, self._epoch)

    # ------------------------------------------------------------------ transitions

    def _settle(self, now_s: float) -> tuple[Send, ...]:
        while self._step(now_s):
            pass
        now_public = (self._state.public, self._reason, self._shown.number if self._shown else 0)
        if now_public != self._published:
            self._published = now_public
            for incarnation, member in self._members.items():
                if member.info.role is Role.GATEWAY:
                    self._send(incarnation, PublishTopology())
        actions, self._outbox = tuple(self._outbox), []
        return actions

    def _step(self, now_s: float) -> bool:
        """Makes one transition; False at rest."""
        for incarnation, member in list(self._members.items()):
            if member.leaving and member.engaged == 0:
                self._exclude(incarnation, LEFT_AS_ASKED)
        match self._state:
            case State.WAITING:
                return self._step_waiting(now_s)
            case State.LEAVING:
                if any(m.abandon_by_s is not None for m in self._members.values()):
                    return False
                self._state = State.WAITING
                return True
            case State.FORMING:
                return self._step_forming(now_s)
            case State.RUNNING:
                return self._step_running(now_s)

    def _step_waiting(self, now_s: float) -> bool:
        engaged = [m for m in self._members.values() if m.engaged]
        if any(m.leaving and m.abandon_by_s is None for m in engaged):
            return self._dissolve("a member leaves", now_s)
        eligible = self._eligible()
        placement, missing = self._plan(eligible)
        if placement is None:
            self._reason = f"{missing}; {self._why}" if self._why else missing
            return False
        if self._not_before_s is not None:
            return False
        if engaged:
            return self._dissolve(self._why or "the coordinator was restarted", now_s)
        return self._form(eligible, placement, now_s)

    def _step_forming(self, now_s: float) -> bool:
        assert self._current is not None
        if why := self._broken or self._departure():
            return self._dissolve(why, now_s)
        if len(self._prepared) < len(self._current.members):
            return False
        self._state = State.RUNNING
        self._reason = self._why = ""
        self._shown = self._current
        self._epoch = 0
        self._settled_in = True
        self._live_since_s = now_s
        for info in self._current.members:
            self._members[info.incarnation].strikes = 0
            self._send(info.incarnation, Live(self._current.number))
        return True

    def _step_running(self, now_s: float) -> bool:
        assert self._current is not None
        if why := self._broken or self._departure():
            return self._dissolve(why, now_s)
        number = self._current.number
        next_members = [m for m in self._eligible() if m.engaged in (0, number)]
        n_joining = sum(1 for m in next_members if m.engaged == 0)
        self._reason = ""
        if n_joining:
            placement, missing = self._plan(next_members)
            if placement is not None:
                return self._dissolve(f"{n_joining} members join", now_s)
            self._reason = f"{n_joining} members are left out: {missing}"
        return False

    def _form(self, members: list[_Member], placement: Placement, now_s: float) -> bool:
        self._number += 1
        infos = tuple(m.info for m in members)
        self._current = Generation(self._number, infos, placement, infos[0].store_address)
        self._has_formed = True
        self._prepared = set()
        self._broken = ""
        self._prepare_by_s = now_s + self._rules.prepare_s
        self._state = State.FORMING
        self._reason = self._why
        for member in members:
            member.engaged = self._number
            self._send(member.info.incarnation, Prepare(self._current))
        return True

    def _dissolve(self, why: str, now_s: float) -> bool:
        self._reason = self._why = why
        self._current = None
        self._broken = ""
        self._state = State.LEAVING
        for member in self._members.values():
            if member.engaged:
                self._tell_to_abandon(member, why, now_s)
        return True

    # ------------------------------------------------------------------ facts

    def _eligible(self) -> list[_Member]:
        """Who may be in the next generation, in rank order."""
        staying = [m for m in self._members.values() if not m.leaving]
        return [m for role in (Role.ROUTER, Role.EXPERTS) for m in staying if m.info.role is role]

    def _plan(self, members: list[_Member]) -> tuple[Placement | None, str]:
        """The placement of a generation of these members, or None and what is missing."""
        rules = self._rules
        n_routers = sum(1 for m in members if m.info.role is Role.ROUTER)
        n_experts = len(members) - n_routers
        need_routers = 1 if self._settled_in else rules.n_routers
        need_experts = min(1, rules.n_experts) if self._settled_in else rules.n_experts
        if n_routers < need_routers or n_experts < need_experts:
            return None, (
                f"{n_routers} of at least {need_routers} routers and "
                f"{n_experts} of at least {need_experts} expert hosts are there"
            )
        try:
            return self._place(n_experts), ""
        except PlacementError as error:
            return None, str(error)

    def _departure(self) -> str:
        """Who of the current generation wants to leave; empty when nobody does."""
        assert self._current is not None
        leaving = [m for i in self._current.members if (m := self._members[i.incarnation]).leaving]
        return f"{', '.join(m.info.label for m in leaving)} leaves" if leaving else ""

    def _takes_part(self, incarnation: str, number: int, state: State) -> bool:
        member = self._members.get(incarnation)
        return (
            self._state is state
            and member is not None
            and member.engaged == number
            and self._current is not None
            and self._current.number == number
        )

    def _break(self, why: str) -> None:
        self._broken = self._broken or why

    def _strike(self, incarnation: str, reason: str) -> None:
        member = self._members[incarnation]
        member.strikes += 1
        if member.strikes >= self._rules.max_strikes:
            self._exclude(incarnation, f"failed to prepare {member.strikes} times in a row, last: {reason}")
        else:
            self._break(f"{member.info.label} failed to prepare: {reason}")

    def _exclude(self, incarnation: str, reason: str) -> None:
        self._send(incarnation, Exclude(reason))
        self._excluded[incarnation] = reason
        self._remove(incarnation, reason)

    def _remove(self, incarnation: str, why: str) -> None:
        member = self._members.pop(incarnation, None)
        if member is None or member.info.role is Role.GATEWAY:
            return
        if self._has_formed:
            self._not_before_s = None
        if self._current and self._current.has(incarnation):
            self._break(f"{member.info.label} was lost: {why}")

    def _tell_to_abandon(self, member: _Member, reason: str, now_s: float) -> None:
        if member.abandon_by_s is None:
            member.abandon_by_s = now_s + self._rules.report_s
            self._send(member.info.incarnation, Abandon(member.engaged, reason))

    def _send(self, incarnation: str, message: Message) -> None:
        self._outbox.append(Send(incarnation, message))
