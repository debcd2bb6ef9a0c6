"""What follows from the facts: the transitions of the membership state machine (`cluster.membership`)."""

from __future__ import annotations

from expertmesh.cluster.actions import (
    Live,
    Prepare,
    Probe,
    PublishTopology,
    Send,
    Switch,
    Wake,
)
from expertmesh.cluster.facts import MembershipFacts
from expertmesh.cluster.planning import Plan, formation, successor
from expertmesh.cluster.probing import ProbeRound
from expertmesh.cluster.state import LEFT_AS_ASKED, State
from expertmesh.cluster.types import AS_CONFIGURED, Generation, Role, Weights


class MembershipTransitions(MembershipFacts):
    """Steps until nothing follows any more; every step is one transition."""

    def _settle(self, now_s: float) -> tuple[Send, ...]:
        while self._step(now_s):
            pass
        change = self._log.current
        now_public = (
            self._state.public,
            self._reason,
            self._shown and self._shown.number,
            change and change.generation,
            self._log.last,
        )
        if now_public != self._published:
            self._published = now_public
            for member in self._roster.of_role(Role.GATEWAY):
                self._send(member.info.incarnation, PublishTopology())
        actions, self._outbox = tuple(self._outbox), []
        return actions

    def _step(self, now_s: float) -> bool:
        """Makes one transition; False at rest."""
        for member in self._roster:
            # While others still switch, the generation that a leaver was part of must not lose its sockets.
            switching_from = self._state is State.SWITCHING and self._live_has(member)
            if member.leaving and not member.engaged and not switching_from:
                self._exclude(member.info.incarnation, LEFT_AS_ASKED)
        if self._broken:
            return self._dissolve(self._broken, now_s)
        match self._state:
            case State.WAITING:
                return self._step_waiting(now_s)
            case State.LEAVING:
                if self._roster.awaited:
                    return False
                self._state = State.WAITING
                return True
            case State.PROBING:
                return self._step_probing(now_s)
            case State.FORMING:
                return self._step_forming(now_s)
            case State.RUNNING:
                return self._step_running(now_s)
            case State.PREPARING:
                return self._step_preparing(now_s)
            case State.SWITCHING:
                return self._step_switching(now_s)

    def _step_waiting(self, now_s: float) -> bool:
        if any(m.leaving and m.engaged and not m.abandon_by_s for m in self._roster):
            return self._dissolve("a member leaves", now_s)
        if generation := self._adoptable():
            return self._adopt(generation, now_s)
        plan = formation(self._roster, self._needs, self._place, self._shown)
        if self._ending:
            plan = "the deployment ends"
        if isinstance(plan, str):
            self._reason = f"{plan}; {self._why}" if self._why else plan
            return False
        if self._not_before_s is not None:
            return False
        if self._roster.anyone_engaged:
            return self._dissolve(self._why or "the coordinator was restarted", now_s)
        if self._unexplained:
            return self._begin_probing(now_s)
        kind = "recovery" if self._settled_in else "start"
        self._log.begin(self._live_number, kind, self._why or "enough members are there", now_s)
        self._current = self._prepare(plan, self._shown.weights if self._shown else AS_CONFIGURED, now_s)
        self._incomplete = not plan.complete
        self._has_formed = True
        self._state = State.FORMING
        self._reason = self._why
        return True

    def _adopt(self, generation: Generation, now_s: float) -> bool:
        """After a restart of the coordinator: the members of the last generation go on as they are."""
        members = [self._roster[info.incarnation] for info in generation.members]
        epoch = max(member.epoch for member in members)
        self._epochs = {generation.number: epoch}
        for member in members:
            # A wake was lost with the coordinator that told it, or was asked for in its absence.
            self._send(member.info.incarnation, Wake(generation.number, epoch))
        for member in self._roster:
            if not generation.has(member.info.incarnation):
                self._tell_to_abandon(member, "the coordinator was restarted", now_s)
        self._has_formed = True
        self._not_before_s = None
        return self._go_live(generation, now_s)

    def _begin_probing(self, now_s: float) -> bool:
        """Nobody was silent: do all reach each other?"""
        members = [m.info for m in self._roster if m.info.role is not Role.GATEWAY and m.info.probe_address]
        if len(members) < 2:
            self._unexplained = ""
            return True
        self._n_probes += 1
        self._probe = ProbeRound(self._n_probes, members, now_s + 2 * self._rules.report_s)
        for member in members:
            others = tuple((m.incarnation, m.probe_address) for m in members if m is not member)
            self._send(member.incarnation, Probe(self._n_probes, others, self._rules.report_s))
        self._state = State.PROBING
        return True

    def _step_probing(self, now_s: float) -> bool:
        assert self._probe is not None
        present = [m.info.incarnation for m in self._roster]
        if set(self._probe.silent()) & set(present):
            return False
        cut_off = self._probe.cut_off(present, needs_hosts=self._rules.n_experts > 0)
        self._probe = None
        self._state = State.WAITING
        if cut_off is None:
            self._reason = self._why = f"no router and host reach each other; {self._unexplained}"
            self._not_before_s = now_s + self._rules.retry_s
            return True
        self._unexplained = ""
        self._probed_in_vain = not cut_off
        for incarnation, reason in cut_off:
            self._exclude(incarnation, reason)
        return True

    def _step_forming(self, now_s: float) -> bool:
        assert self._current is not None
        if why := self._departure(self._current):
            return self._dissolve(why, now_s)
        if len(self._prepared) < len(self._current.members):
            return False
        self._epochs = {self._current.number: 0}
        for info in self._current.members:
            self._send(info.incarnation, Live(self._current.number))
        return self._go_live(self._current, now_s)

    def _step_running(self, now_s: float) -> bool:
        assert self._current is not None
        departure, newcomers = self._departure(self._current), self._newcomers()
        if self._draining and departure:
            self._ending = True
            return self._dissolve(departure, now_s)
        if self._roster.awaited:
            return False  # somebody is still to leave a change that was dropped
        reweighs = self._weights != self._current.weights
        if not (departure or newcomers or self._rebalance or self._incomplete or reweighs):
            return self._rest("")
        if self._nobody_stays():
            return self._gathered(now_s) and self._dissolve(departure, now_s)
        plan = self._successor(self._current)
        if isinstance(plan, str):
            return self._rest(plan)
        if not plan.changes(self._current) and not reweighs:
            left_out = f"{newcomers} is left out: there is nothing for it to hold" if newcomers else ""
            return self._rest(plan.note or left_out)
        self._reason = ""
        if not self._gathered(now_s) or self._not_before_s is not None:
            return False
        assert self._wanted_since_s is not None
        self._log.begin(self._live_number, *self._describe(plan), self._wanted_since_s)
        self._next_broken = ""
        self._next = self._prepare(plan, self._weights, now_s)
        self._incomplete = not plan.complete
        self._state = State.PREPARING
        return True

    def _gathered(self, now_s: float) -> bool:
        """Whether a change has been wanted for long enough for others to be part of it."""
        if self._wanted_since_s is None:
            self._wanted_since_s = now_s
            self._gather_until_s = None if self._incomplete else now_s + self._rules.gather_s
        return self._gather_until_s is None

    def _successor(self, current: Generation) -> Plan | str:
        """The plan for the next change; made anew only when what it depends on has changed."""
        asked = (
            current.number,
            self._rebalance,
            tuple((m.info.incarnation, m.leaving) for m in self._roster),
        )
        if self._planned is None or self._planned[0] != asked:
            rebalance = bool(self._rebalance)
            plan = successor(self._roster, self._needs, self._place, current, rebalance=rebalance)
            self._planned = (asked, plan)
        return self._planned[1]

    def _step_preparing(self, now_s: float) -> bool:
        assert self._current is not None
        assert self._next is not None
        ending = self._nobody_stays() or (self._draining and self._departure(self._current))
        if self._next_broken or ending:
            return self._roll_back(self._next_broken or "the deployment ends", now_s)
        if len(self._prepared) < len(self._next.members):
            return False
        number = self._current.number
        for info in self._current.members:
            self._send(info.incarnation, Switch(number, self._next.number))
        for info in self._next.members:
            if not self._current.has(info.incarnation):
                self._send(info.incarnation, Live(self._next.number, epoch=1))
        self._epochs[self._next.number] = 1
        self._wake(self._current)  # a parked generation would hear of the switch at its next work only
        self._due_s = now_s + self._rules.prepare_s
        self._state = State.SWITCHING
        return True

    def _step_switching(self, now_s: float) -> bool:
        assert self._current is not None
        assert self._next is not None
        if self._roster.engaged_in(self._current.number):
            return False
        del self._epochs[self._current.number]
        switched_to, self._next = self._next, None
        return self._go_live(switched_to, now_s)

    def _prepare(self, plan: Plan, weights: tuple[Weights, ...], now_s: float) -> Generation:
        self._number += 1
        generation = Generation(
            self._number, plan.members, plan.placement, plan.members[0].store_address, weights
        )
        self._prepared = set()
        self._due_s = now_s + self._rules.prepare_s
        for info in generation.members:
            self._roster[info.incarnation].engaged.add(self._number)
            self._send(info.incarnation, Prepare(generation))
        self._log.prepares(self._number)
        return generation

    def _go_live(self, generation: Generation, now_s: float) -> bool:
        self._state = State.RUNNING
        self._reason = self._why = ""
        self._log.live(self._shown, generation, now_s)
        self._current = self._shown = generation
        self._settled_in = True
        self._live_since_s = now_s
        self._n_rollbacks = 0
        self._unexplained = ""
        self._probed_in_vain = False
        self._wanted_since_s = None
        if not self._incomplete:
            self._rebalance = ""
        if generation.weights == self._wanted_weights:
            self._wanted_weights = ()
        for info in generation.members:
            if member := self._roster.get(info.incarnation):
                member.strikes = 0
        return True

    def _roll_back(self, why: str, now_s: float) -> bool:
        assert self._next is not None
        for member in self._roster.engaged_in(self._next.number):
            self._tell_to_abandon(member, why, now_s, self._next.number)
        self._drop_next()
        self._next_broken = ""
        self._rebalance = ""
        self._incomplete = False
        self._planned = None
        self._state = State.RUNNING
        self._wanted_since_s = None
        self._log.roll_back(now_s, why)
        return True

    def _dissolve(self, why: str, now_s: float) -> bool:
        if self._state.serves:
            self._log.roll_back(now_s, why)
            self._log.begin(self._live_number, "recovery", why, now_s)
        self._reason = self._why = why
        self._drop_next()
        self._current = None
        self._broken = self._next_broken = ""
        self._rebalance = ""
        self._incomplete = False
        self._planned = None
        self._wanted_since_s = self._gather_until_s = None
        self._state = State.LEAVING
        for member in self._roster:
            self._tell_to_abandon(member, why, now_s)
        return True

    def _drop_next(self) -> None:
        if self._next and self._next.weights == self._wanted_weights:
            self._wanted_weights = ()  # Who asked for them is told why, and may ask again.
        self._next = None

    def _wake(self, generation: Generation) -> None:
        self._epochs[generation.number] += 1
        for info in generation.members:
            self._send(info.incarnation, Wake(generation.number, self._epochs[generation.number]))

    def _rest(self, reason: str) -> bool:
        """Nothing is to be changed."""
        self._reason = reason
        self._rebalance = ""
        self._wanted_since_s = self._gather_until_s = None
        self._incomplete = False
        return False
