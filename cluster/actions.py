"""What the membership state machine wants done: messages to members, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh.cluster.types import Generation


@dataclass(frozen=True, slots=True)
class Prepare:
    """Load what is missing and build the process group, then answer prepared."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Live:
    """Every member has prepared: the generation is live, parked at epoch 0."""

    number: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Leave a generation (running or still preparing) and answer abandoned."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Enter this epoch of the live generation."""

    number: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Exclude:
    """The member is out for good; its stream ends behind this message."""

    reason: str


@dataclass(frozen=True, slots=True)
class PublishTopology:
    """To gateways: the state, its reason or the generation has changed, or the gateway is new."""


Message = Prepare | Live | Abandon | Wake | Exclude | PublishTopology


@dataclass(frozen=True, slots=True)
class Send:
    """One message to one member, behind all that were sent to it before."""

    incarnation: str
    message: Message
