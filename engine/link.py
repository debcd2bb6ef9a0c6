"""What a member steps with in one generation: its exchange and the agreement before each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from expertmesh.engine.batch import StepBatch
from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.header import StepAgreement, StepHeader
from expertmesh.engine.exchange.host import HostExchange
from expertmesh.engine.exchange.sharded import ShardedExchange
from expertmesh.models.interface import MoeExchange

if TYPE_CHECKING:
    from expertmesh.engine.runner import Runner


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """What a router computes steps of one version of the weights with."""

    version: int
    runner: Runner
    exchange: MoeExchange
    """Carries the tokens of the agreed step."""


NO_WORK = StepBatch()


class StepLink(Protocol):
    """The router's side of one generation."""

    @property
    def number(self) -> int:
        """The generation's number."""
        ...

    @property
    def communicator(self) -> Communicator | None:
        """None in the fused mode."""
        ...

    @property
    def versions(self) -> Sequence[ModelVersion]:
        """The versions of the weights that the generation holds, oldest first."""
        ...

    @property
    def turn(self) -> int:
        """Which of the versions the coming step computes with."""
        ...

    def agree(self, batch: StepBatch, wanted: int, successor: int) -> StepAgreement:
        """Tells all ranks what this one will do in the coming step, which versions it has work for (one bit
        each) and which generation it is ready to go over to (0: none), and hears the same of them."""
        ...

    def finish_step(self) -> None:
        """Takes part without tokens in what others have agreed on beyond this router's own batch."""
        ...


class Agreement:
    """The header exchange of one rank; counts the generation's steps, and whose turn it is."""

    def __init__(self, communicator: Communicator, n_versions: int) -> None:
        self._communicator = communicator
        self._n_versions = n_versions
        self._step = 0
        self.turn = n_versions - 1
        """The version of the weights of the coming step, as an index; the same on all ranks."""

    def next(self, batch: StepBatch = NO_WORK, *, wanted: int = 0, successor: int) -> StepAgreement:
        """The headers of the coming step.

        Raises:
            GenerationLostError: a rank is at another step, or the collective failed.
        """
        number = self._communicator.generation
        own = _header(number, self._step, batch, successor, wanted)
        rows = self._communicator.all_gather(own.encode())
        agreement = StepAgreement(tuple(StepHeader.decode(row) for row in rows))
        mismatch = agreement.mismatch(own)
        if mismatch is not None:
            raise GenerationLostError(number, mismatch)
        self._step += 1
        self.turn = agreement.next_turn(self.turn, self._n_versions)
        return agreement


def _header(number: int, step: int, batch: StepBatch, successor: int, wanted: int) -> StepHeader:
    return StepHeader(
        number,
        step,
        tokens=batch.n_tokens,
        decode_tokens=batch.n_decode_tokens,
        draft_passes=batch.n_draft_passes,
        draft_tokens=batch.n_draft_rows,
        successor=successor,
        wanted=wanted,
    )


class FusedLink:
    """A router that holds all experts itself steps alone."""

    communicator = None

    def __init__(self, number: int, versions: Sequence[ModelVersion]) -> None:
        self.number = number
        self.versions = tuple(versions)
        self.turn = len(versions) - 1

    def agree(self, batch: StepBatch, wanted: int, successor: int) -> StepAgreement:
        """With nobody else there, the own header is the agreement."""
        own = _header(self.number, 0, batch, successor, wanted)
        agreement = StepAgreement((own,))
        self.turn = agreement.next_turn(self.turn, len(self.versions))
        return agreement

    def finish_step(self) -> None:
        """There are no others."""


class ShardedLink:
    """A router among others and expert hosts; `exchange` is that of all `versions`."""

    def __init__(
        self,
        communicator: Communicator,
        exchange: ShardedExchange,
        versions: Sequence[ModelVersion],
    ) -> None:
        self.number = communicator.generation
        self.communicator = communicator
        self.versions = tuple(versions)
        self._exchange = exchange
        self._agreement = Agreement(communicator, len(versions))

    @property
    def turn(self) -> int:
        """Which of the versions the coming step computes with."""
        return self._agreement.turn

    def agree(self, batch: StepBatch, wanted: int, successor: int) -> StepAgreement:
        """The headers of all ranks; the exchange takes its sizes from them."""
        agreement = self._agreement.next(batch, wanted=wanted, successor=successor)
        self._exchange.begin(agreement)
        return agreement

    def finish_step(self) -> None:
        """Enters every collective that is left with nothing to send."""
        self._exchange.finish()


class HostLink:
    """An expert host in one generation."""

    def __init__(self, communicator: Communicator, exchange: HostExchange) -> None:
        self.number = communicator.generation
        self.communicator = communicator
        self.exchange = exchange
        self._agreement = Agreement(communicator, exchange.n_versions)

    def agree(self, successor: int) -> StepAgreement:
        """The headers of all ranks; the exchange takes its sizes and its weights from them."""
        turn = self._agreement.turn
        agreement = self._agreement.next(successor=successor)
        self.exchange.begin(agreement, turn)
        return agreement
