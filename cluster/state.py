"""What the membership state machine goes by and what it tells: states, rules, views."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from expertmesh.cluster.types import Change, Generation, MemberInfo

LEFT_AS_ASKED = "left as asked"
"""Why a member is excluded that wanted to leave."""


class State(enum.Enum):
    """Where the machine stands."""

    WAITING = "waiting"
    """Not enough members, or a pause before a new try."""
    LEAVING = "leaving"
    """Members were asked to leave a generation and have not all answered."""
    PROBING = "probing"
    """Members find out whether they reach each other: a group could not be built, or collectives failed,
    and nobody was silent."""
    FORMING = "forming"
    RUNNING = "running"
    PREPARING = "preparing"
    """A generation is live, and its successor is being prepared beside it."""
    SWITCHING = "switching"
    """The members go over to the successor, each after the same step."""

    @property
    def public(self) -> str:
        """What clients are told: "waiting", "forming" or "running"."""
        if self in (State.LEAVING, State.PROBING):
            return "forming"
        return "running" if self.serves else self.value

    @property
    def serves(self) -> bool:
        """Whether a generation is live."""
        return self in (State.RUNNING, State.PREPARING, State.SWITCHING)


@dataclass(frozen=True, slots=True)
class DeadlineMiss:
    """A member has let a deadline pass."""

    deadline: Literal["heartbeat", "leave", "probe", "prepare", "switch"]
    member: MemberInfo


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
    """Between a failed formation and the next try, as long as nobody was lost."""
    max_strikes: int = 3
    """A member that fails to prepare this often in a row is out (Serve starts a fresh one), unless it is
    live: then only the change is dropped."""
    gather_s: float = 0.3
    """Joins and leaves within this time make one change."""
    change_retry_s: float = 5.0
    """Between a change that was rolled back and the next try."""


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
    changes: tuple[Change, ...] = ()
    """The last changes that have ended, oldest first."""
    change: Change | None = None
    """The change that is under way."""

    @property
    def last_change(self) -> Change | None:
        """The last change that has ended."""
        return self.changes[-1] if self.changes else None
