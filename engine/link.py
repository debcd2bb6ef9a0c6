"""What a member steps with in one generation: its exchange and the agreement before each step."""

from __future__ import annotations

from typing import Protocol

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.fused import FusedExchange
from expertmesh.engine.exchange.header import StepAgreement, StepHeader
from expertmesh.engine.exchange.host import HostExchange
from expertmesh.engine.exchange.sharded import ShardedExchange
from expertmesh.models.interface import MoeExchange


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
    def exchange(self) -> MoeExchange:
        """Carries the tokens of the agreed step."""
        ...

    def agree(self, tokens: int, decode_tokens: int, successor: int) -> StepAgreement:
        """Tells all ranks what this one will do in the coming step and which generation it is ready to go
        over to (0: none), and hears the same of them."""
        ...

    def idle_step(self) -> None:
        """Takes part in the agreed step without tokens."""
        ...


class Agreement:
    """The header exchange of one rank; counts the generation's steps."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._step = 0

    def next(self, tokens: int, decode_tokens: int, successor: int) -> StepAgreement:
        """The headers of the coming step.

        Raises:
            GenerationLostError: a rank is at another step, or the collective failed.
        """
        number = self._communicator.generation
        own = StepHeader(number, self._step, tokens, decode_tokens, successor=successor)
        rows = self._communicator.all_gather(own.encode())
        agreement = StepAgreement(tuple(StepHeader.decode(row) for row in rows))
        mismatch = agreement.mismatch(own)
        if mismatch is not None:
            raise GenerationLostError(number, mismatch)
        self._step += 1
        return agreement


class FusedLink:
    """A router that holds all experts itself steps alone."""

    communicator = None

    def __init__(self, number: int, exchange: FusedExchange) -> None:
        self.number = number
        self.exchange = exchange

    def agree(self, tokens: int, decode_tokens: int, successor: int) -> StepAgreement:
        """With nobody else there, the own header is the agreement."""
        return StepAgreement((StepHeader(self.number, 0, tokens, decode_tokens, successor=successor),))

    def idle_step(self) -> None:
        """Never called: without tokens the fused router parks."""


class ShardedLink:
    """A router among others and expert hosts."""

    def __init__(self, communicator: Communicator, exchange: ShardedExchange, n_moe_layers: int) -> None:
        self.number = communicator.generation
        self.communicator = communicator
        self.exchange = exchange
        self._n_moe_layers = n_moe_layers
        self._agreement = Agreement(communicator)

    def agree(self, tokens: int, decode_tokens: int, successor: int) -> StepAgreement:
        """The headers of all ranks; the exchange takes its sizes from them."""
        agreement = self._agreement.next(tokens, decode_tokens, successor)
        self.exchange.begin(agreement)
        return agreement

    def idle_step(self) -> None:
        """Enters every collective of the step with nothing to send."""
        self.exchange.idle_step(self._n_moe_layers)


class HostLink:
    """An expert host in one generation."""

    def __init__(self, communicator: Communicator, exchange: HostExchange) -> None:
        self.number = communicator.generation
        self.communicator = communicator
        self.exchange = exchange
        self._agreement = Agreement(communicator)

    def agree(self, successor: int) -> StepAgreement:
        """The headers of all ranks; the exchange takes its sizes from them."""
        agreement = self._agreement.next(0, 0, successor)
        self.exchange.begin(agreement)
        return agreement
