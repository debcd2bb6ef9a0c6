"""What the membership state machine knows: who is there, who may still run what, what is broken.

Recording a fact moves nothing; `cluster.membership` derives every transition from the facts.
"""

from __future__ import annotations

from expertmesh.cluster.actions import Abandon, Exclude, Message, Send
from expertmesh.cluster.change_log import ChangeLog
from expertmesh.cluster.placement.interface import Placer
from expertmesh.cluster.planning import Needs, Plan
from expertmesh.cluster.probing import ProbeRound
from expertmesh.cluster.roster import Member, Roster
from expertmesh.cluster.state import DeadlineMiss, MembershipRules, State, View
from expertmesh.cluster.types import AS_CONFIGURED, Generation, Role, Weights


class MembershipFacts:
    """The facts, the questions about them, and how they are recorded."""

    def __init__(self, rules: MembershipRules, place: Placer) -> None:
        self._rules = rules
        self._place = place
        self._state = State.WAITING
        self._reason = "nobody has joined yet"
        self._roster = Roster()
        self._excluded: dict[str, str] = {}
        self._number = 0
        """The highest generation number known."""
        self._current: Generation | None = None
        """The generation that is forming or live."""
        self._next: Generation | None = None
        """Its successor while that is prepared or switched to."""
        self._shown: Generation | None = None
        self._prepared: set[str] = set()
        """Who has prepared the generation that is forming or prepared."""
        self._epochs: dict[int, int] = {}
        """How often the current generation and its successor were woken."""
        self._why = ""
        """Why the last generation was left; empty once the next one is live."""
        self._broken = ""
        """Why the current generation has to be left; empty while it need not."""
        self._next_broken = ""
        """Why its successor has to be dropped."""
        self._settled_in = False
        """A generation was live once, here or before the coordinator's restart: from then on any router
        and any host make a generation."""
        self._has_formed = False
        self._draining = False
        self._rebalance = ""
        """Why the experts are to be spread anew; empty when they are not."""
        self._incomplete = False
        """The live placement is a step on the way to another one."""
        self._wanted_weights: tuple[Weights, ...] = ()
        """What the next generation is to hold; empty for what the last one does."""
        self._highest_version = 0
        """Of the weights: the numbers of versions that were rolled back are not used again."""
        self._n_rollbacks = 0
        """In a row."""
        self._wanted_since_s: float | None = None
        """Since when a change has been wanted."""
        self._gather_until_s: float | None = None
        """Others may still want to be part of it until then."""
        self._ending = False
        """Members of a draining deployment have begun to leave: no generation is formed any more."""
        self._not_before_s: float | None = None
        """No formation or change before this: members are announcing themselves, or a failed try is to be
        spaced."""
        self._due_s = 0.0
        """By when the preparation or the switch must be done."""
        self._live_since_s = 0.0
        self._unexplained = ""
        """Collectives failed or a group could not be built, and nobody has been lost since."""
        self._probed_in_vain = False
        """Members reach each other, as the last probe has shown, and no generation was live since."""
        self._probe: ProbeRound | None = None
        self._n_probes = 0
        self._planned: tuple[tuple[object, ...], Plan | str] | None = None
        self._log = ChangeLog()
        self._misses: list[DeadlineMiss] = []
        self._outbox: list[Send] = []
        self._published: tuple[object, ...] = ()

    # ------------------------------------------------------------------ questions

    def next_deadline_s(self) -> float | None:
        """When `tick` has something to do at the earliest; None for never."""
        due = [m.heard_s + self._rules.deadline_s for m in self._roster]
        due += [by_s for m in self._roster for by_s in m.abandon_by_s.values()]
        if self._state in (State.FORMING, State.PREPARING, State.SWITCHING):
            due.append(self._due_s)
        if self._state is State.PROBING and self._probe:
            due.append(self._probe.due_s)
        if self._not_before_s is not None:
            due.append(self._not_before_s)
        if self._gather_until_s is not None:
            due.append(self._gather_until_s)
        return min(due, default=None)

    def view(self) -> View:
        """The state as of the last event."""
        epoch = self._epochs.get(self._shown.number, 0) if self._shown else 0
        return View(self._state, self._reason, self._shown, epoch, self._log.ended, self._log.current)

    def take_deadline_misses(self) -> list[DeadlineMiss]:
        """Deadlines that members have let pass since the last call."""
        misses, self._misses = self._misses, []
        return misses

    @property
    def rebalancing(self) -> bool:
        """Whether a rebalance is wanted or under way."""
        return bool(self._rebalance)

    @property
    def highest_generation(self) -> int:
        """The highest generation number that was ever given; those of later changes are higher."""
        return self._number

    @property
    def reload_refusal(self) -> str:
        """Why other weights cannot be loaded now; empty when they can."""
        if not self._state.serves:
            return f"no generation is live ({self._reason}), try again when one is"
        if self._draining:
            return "the deployment is shutting down"
        if self._wanted_weights or len(self._weights) > 1:
            return "other weights are being loaded, or requests that began with the old ones still run"
        return ""

    # ------------------------------------------------------------------ facts

    @property
    def _weights(self) -> tuple[Weights, ...]:
        """What the next generation holds."""
        return self._wanted_weights or (self._shown.weights if self._shown else AS_CONFIGURED)

    @property
    def _needs(self) -> Needs:
        rules = self._rules
        if self._settled_in:
            return Needs(1, min(1, rules.n_experts))
        return Needs(rules.n_routers, rules.n_experts)

    @property
    def _live_number(self) -> int:
        return self._current.number if self._current and self._state.serves else 0

    @property
    def _preparing(self) -> int:
        """The generation that members are preparing; 0 is none."""
        if self._state is State.FORMING and self._current:
            return self._current.number
        return self._next.number if self._state is State.PREPARING and self._next else 0

    def _adoptable(self) -> Generation | None:
        """A generation that goes on though the coordinator was restarted: every member of it is there, runs
        it, and is part of nothing else."""
        generation = self._shown
        if self._has_formed or generation is None:
            return None
        for info in generation.members:
            member = self._roster.get(info.incarnation)
            if member is None or member.running != generation.number:
                return None
            if member.engaged != {generation.number} or member.abandon_by_s:
                return None
        return generation

    def _steps(self, number: int) -> bool:
        """Whether members may be stepping in a generation."""
        if self._state is State.SWITCHING and self._next and number == self._next.number:
            return True
        return number > 0 and number == self._live_number

    def _is_engaged(self, incarnation: str, number: int) -> bool:
        member = self._roster.get(incarnation)
        return member is not None and number in member.engaged

    def _live_has(self, member: Member) -> bool:
        return self._current is not None and self._current.has(member.info.incarnation)

    def _departure(self, generation: Generation) -> str:
        """Who of a generation wants to leave; empty when nobody does."""
        names = [m.info.label for m in self._roster if m.leaving and generation.has(m.info.incarnation)]
        return f"{', '.join(names)} leaves" if names else ""

    def _newcomers(self) -> str:
        """Who waits to be taken in."""
        return ", ".join(
            m.info.label
            for m in self._roster
            if m.info.role is not Role.GATEWAY and not m.leaving and not self._live_has(m)
        )

    def _nobody_stays(self) -> bool:
        """Whether all routers and hosts want to leave: the deployment is being removed. When all of one
        kind do, they are held until others have come in their place."""
        return all(m.leaving for m in self._roster if m.info.role is not Role.GATEWAY)

    def _describe(self, plan: Plan) -> tuple[str, str]:
        """What kind of change a plan is, and its reason."""
        assert self._current is not None
        before = {m.incarnation for m in self._current.members}
        after = {m.incarnation for m in plan.members}
        joining = [m.label for m in plan.members if m.incarnation not in before]
        going = [m.label for m in self._current.members if m.incarnation not in after]
        parts = [f"{', '.join(joining)} joins"] if joining else []
        parts += [f"{', '.join(going)} leaves"] if going else []
        if not parts and (departure := self._departure(self._current)):
            parts = [f"{departure}, its experts move first"]
        if self._rebalance:
            parts.append(self._rebalance)
        kind = "rebalance" if self._rebalance else "scale"
        if self._weights != self._current.weights:
            kind = "reload"
            added = [w for w in self._weights if w not in self._current.weights]
            dropped = [w for w in self._current.weights if w not in self._weights]
            parts += [f"{w.label} for new requests" for w in added]
            parts += [f"no request needs {w.label} any more" for w in dropped]
        return kind, "; ".join(parts) or "experts move on"

    # ------------------------------------------------------------------ recording facts

    def _break(self, why: str) -> None:
        self._broken = self._broken or why

    def _lose(self, number: int, why: str) -> None:
        """A generation cannot go on, if it is one that counts."""
        if self._current and number == self._current.number:
            self._break(why)
        elif self._next and number == self._next.number:
            if self._state is State.SWITCHING:
                self._break(why)
            else:
                self._next_broken = self._next_broken or why

    def _strike(self, incarnation: str, reason: str, now_s: float) -> None:
        """A member could not prepare."""
        rules, member = self._rules, self._roster[incarnation]
        member.strikes += 1
        is_live = self._live_has(member) and self._state is State.PREPARING
        why = f"{member.info.label} failed to prepare: {reason}"
        if self._state is State.PREPARING:
            self._n_rollbacks += 1
            backoff = min(2 ** (self._n_rollbacks - 1), 8)
            self._not_before_s = now_s + rules.change_retry_s * backoff
        else:
            self._not_before_s = now_s + rules.retry_s
        if member.strikes >= rules.max_strikes and not is_live:
            why = f"failed to prepare {member.strikes} times in a row, last: {reason}"
            self._exclude(incarnation, why)
        else:
            self._lose(self._preparing, why)

    def _exclude(self, incarnation: str, reason: str) -> None:
        self._send(incarnation, Exclude(reason))
        self._excluded[incarnation] = reason
        self._remove(incarnation, reason)

    def _remove(self, incarnation: str, why: str) -> None:
        member = self._roster.pop(incarnation)
        if member is None or member.info.role is Role.GATEWAY:
            return
        if self._has_formed:
            self._not_before_s = None
        self._unexplained = ""
        for number in member.engaged:
            self._lose(number, f"{member.info.label} was lost: {why}")

    def _tell_to_abandon(self, member: Member, reason: str, now_s: float, number: int = 0) -> None:
        """Asks a member to leave a generation, or all that it may be in."""
        for engaged in sorted({number} & member.engaged if number else member.engaged):
            if engaged not in member.abandon_by_s:
                member.abandon_by_s[engaged] = now_s + self._rules.report_s
                self._send(member.info.incarnation, Abandon(engaged, reason))

    def _send(self, incarnation: str, message: Message) -> None:
        self._outbox.append(Send(incarnation, message))
