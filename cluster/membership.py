"""Who is there and which generation runs: the coordinator's state machine, without Ray, sockets or clocks.

Events go in as method calls with the time (`now_s`, any monotonic clock), actions come out. Events only
record facts (who is present, who may still run what, what is broken); `_step` derives every transition
from the facts, so that it does not matter in which order they came.

    WAITING --enough members--> FORMING --all prepared--> RUNNING <--- all have switched ----+
       ^                           |                       |  ^                             |
       |                           |   join, leave, rebalance |failure                      |
       |                           |                       v  |                             |
       +---- all have left --- LEAVING <-- loss --- PREPARING --all prepared--> SWITCHING --+

Where a group could not be built or collectives failed though nobody was silent, WAITING goes over PROBING:
members report whom they reach, and the larger side goes on.

A planned change prepares the successor beside the live generation and is dropped without a trace until all
have prepared. From then on there is no way back: the members switch by the agreement of their step headers,
which no message can recall, and whatever breaks leads to a new formation of all.

A member is *engaged* in a generation from the moment it is sent Prepare until it answers abandoned or is
gone. It is sent Prepare only while it is engaged in nothing but the live generation.
"""

from __future__ import annotations

from collections.abc import Iterable

from expertmesh.cluster.actions import Exclude, PublishTopology, Send
from expertmesh.cluster.roster import Member
from expertmesh.cluster.state import DeadlineMiss, State
from expertmesh.cluster.transitions import MembershipTransitions
from expertmesh.cluster.types import Generation, MemberInfo, Role, Weights


class Membership(MembershipTransitions):
    """The state machine. Every event method returns what is to be done, in order."""

    # ------------------------------------------------------------------ events

    def joined(
        self,
        info: MemberInfo,
        generation: int,
        seen_generation: int,
        now_s: float,
        next_generation: int = 0,
        running: Generation | None = None,
        epoch: int = 0,
    ) -> tuple[Send, ...]:
        """A member's Hello: `generation` is what it runs or else prepares (0: none), `next_generation` what
        it prepares beside that, `running` all about the one that it runs, `epoch` where it is in that."""
        if info.incarnation in self._excluded:
            self._send(info.incarnation, Exclude(self._excluded[info.incarnation]))
            return self._settle(now_s)
        if self._roster.get(info.incarnation):
            self._remove(info.incarnation, "came back on a new stream")
        engaged = {number for number in (generation, next_generation) if number}
        self._number = max(self._number, seen_generation, *engaged, 0)
        if running and not self._has_formed and running.number > (self._shown.number if self._shown else 0):
            self._shown = running
        runs = running.number if running else 0
        member = Member(info, heard_s=now_s, engaged=engaged, running=runs, epoch=epoch)
        self._roster.add(member)
        if info.role is Role.GATEWAY:
            self._send(info.incarnation, PublishTopology())
        elif info.role is Role.EXPERTS and self._rules.n_experts == 0:
            self._exclude(info.incarnation, "this deployment is fused: it has no expert hosts")
        elif (engaged or seen_generation) and not self._has_formed:
            self._settled_in = True
            if self._not_before_s is None:
                self._not_before_s = now_s + self._rules.announce_s
        else:
            self._tell_to_abandon(member, "its stream to the coordinator was broken", now_s)
        return self._settle(now_s)

    def left(self, incarnation: str, now_s: float) -> tuple[Send, ...]:
        """The member's stream has ended: it is dead."""
        self._remove(incarnation, "its stream ended")
        return self._settle(now_s)

    def leaving(self, incarnation: str, now_s: float) -> tuple[Send, ...]:
        """The member wants to leave; it is excluded with LEFT_AS_ASKED as soon as nothing needs it."""
        if member := self._roster.get(incarnation):
            member.leaving = True
        return self._settle(now_s)

    def drain(self, now_s: float) -> tuple[Send, ...]:
        """The deployment ends: who leaves from now on hands nothing over."""
        self._draining = True
        return self._settle(now_s)

    def rebalance(self, reason: str, now_s: float) -> tuple[Send, ...]:
        """Moves and copies experts until the load is even, as one or several changes."""
        self._rebalance = self._rebalance or reason
        return self._settle(now_s)

    def reload(self, path: str, now_s: float) -> tuple[int, tuple[Send, ...]]:
        """Loads other weights beside those that are served; when `reload_refusal` is empty. Gives their
        version, too."""
        version = max(self._highest_version, self._weights[-1].version) + 1
        self._highest_version = version
        self._wanted_weights = (*self._weights, Weights(version, path))
        return version, self._settle(now_s)

    def retire_weights(self, now_s: float) -> tuple[Send, ...]:
        """No request needs any but the newest weights of the live generation."""
        if self._state is State.RUNNING and len(self._weights) > 1 and not self._wanted_weights:
            self._wanted_weights = self._weights[-1:]
        return self._settle(now_s)

    def heard(self, incarnation: str, now_s: float) -> None:
        """Any message has come from the member."""
        if member := self._roster.get(incarnation):
            member.heard_s = now_s

    def prepared(self, incarnation: str, number: int, now_s: float) -> tuple[Send, ...]:
        """The member has weights and process group of a generation ready."""
        if number == self._preparing and self._is_engaged(incarnation, number):
            self._prepared.add(incarnation)
        return self._settle(now_s)

    def prepare_failed(
        self, incarnation: str, number: int, reason: str, now_s: float, *, unmet: bool = False
    ) -> tuple[Send, ...]:
        """The member could not prepare a generation. `unmet`: it did not meet the others, and the fault may
        be theirs or the network's, which a probe will tell."""
        if number == self._preparing and self._is_engaged(incarnation, number):
            if unmet and self._state is State.FORMING and not self._probed_in_vain:
                self._unexplained = f"{self._roster[incarnation].info.label}: {reason}"
                self._lose(number, self._unexplained)
            else:
                self._strike(incarnation, reason, now_s)
        return self._settle(now_s)

    def probed(
        self, incarnation: str, number: int, reached: Iterable[str], now_s: float
    ) -> tuple[Send, ...]:
        """The member has called on others in a round of probing, and these have answered."""
        if self._probe is not None:
            self._probe.report(incarnation, number, reached)
        return self._settle(now_s)

    def abandoned(self, incarnation: str, number: int, now_s: float) -> tuple[Send, ...]:
        """The member is out of a generation and of everything that it prepared for it."""
        member = self._roster.get(incarnation)
        if member and number in member.engaged:
            member.engaged.discard(number)
            asked = member.abandon_by_s.pop(number, None) is not None
            switched = self._state is State.SWITCHING and number == self._live_number
            if not asked and not switched:
                self._lose(number, f"{member.info.label} left generation {number} by itself")
        return self._settle(now_s)

    def accuse(self, incarnation: str, number: int, reason: str, now_s: float) -> tuple[Send, ...]:
        """A collective failed at this member. Asking all to leave is the check: who is silent is out."""
        if not self._has_formed and (member := self._roster.get(incarnation)):
            member.running = 0  # What it ran cannot go on.
        if self._steps(number) and self._is_engaged(incarnation, number):
            self._not_before_s = max(now_s, self._live_since_s + self._rules.retry_s)
            self._unexplained = f"{self._roster[incarnation].info.label}: {reason}"
            self._break(self._unexplained)
        return self._settle(now_s)

    def wake_request(self, incarnation: str, number: int, epoch: int, now_s: float) -> tuple[Send, ...]:
        """Work has come to a parked member; all are woken once for each epoch."""
        member = self._roster.get(incarnation)
        if not self._has_formed and member and member.running == number:
            member.epoch = max(member.epoch, epoch)
        for generation in (self._current, self._next):
            stepping = generation is not None and generation.number == number and self._steps(number)
            if stepping and self._is_engaged(incarnation, number) and epoch == self._epochs[number] + 1:
                assert generation is not None
                self._wake(generation)
        return self._settle(now_s)

    def tick(self, now_s: float) -> tuple[Send, ...]:
        """Time has passed; see `next_deadline_s`."""
        rules = self._rules
        for member in self._roster:
            late = [number for number, by_s in member.abandon_by_s.items() if by_s <= now_s]
            if member.heard_s + rules.deadline_s <= now_s:
                self._misses.append(DeadlineMiss("heartbeat", member.info))
                self._exclude(member.info.incarnation, f"no heartbeat for {rules.deadline_s:g} s")
            elif late:
                self._misses.append(DeadlineMiss("leave", member.info))
                why = f"did not leave generation {late[0]} within {rules.report_s:g} s"
                self._exclude(member.info.incarnation, why)
        if self._probe is not None and self._probe.due_s <= now_s:
            for incarnation in self._probe.silent():
                if silent := self._roster.get(incarnation):
                    self._misses.append(DeadlineMiss("probe", silent.info))
                self._exclude(incarnation, f"did not answer a probe within {2 * rules.report_s:g} s")
        if self._preparing and self._due_s <= now_s:
            for member in self._roster.engaged_in(self._preparing):
                if member.info.incarnation not in self._prepared:
                    self._misses.append(DeadlineMiss("prepare", member.info))
                    self._strike(
                        member.info.incarnation, f"not prepared within {rules.prepare_s:g} s", now_s
                    )
        if self._state is State.SWITCHING and self._due_s <= now_s:
            late_members = self._roster.engaged_in(self._live_number)
            self._misses += [DeadlineMiss("switch", m.info) for m in late_members]
            names = ", ".join(m.info.label for m in late_members)
            self._break(f"{names} did not switch to generation {self._number} within {rules.prepare_s:g} s")
        if self._not_before_s is not None and self._not_before_s <= now_s:
            self._not_before_s = None
        if self._gather_until_s is not None and self._gather_until_s <= now_s:
            self._gather_until_s = None
        return self._settle(now_s)
