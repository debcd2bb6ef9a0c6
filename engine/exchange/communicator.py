"""What a step needs of the ranks of its generation: two collectives, each with a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class PendingExchange:
    """An all-to-all under way. `wait` gives what was received; the sent buffer lives until then."""

    def __init__(self, finish: Callable[[], Tensor], sent: Tensor) -> None:
        self._finish = finish
        self._sent = sent

    def wait(self) -> Tensor:
        """The received uint8 buffer. Raises `GenerationLostError`."""
        return self._finish()


class Communicator(Protocol):
    """The ranks of one generation.

    Every wait has a deadline and ends early when `abandon` is called; both raise
    `GenerationLostError`. A communicator that has failed is never used again.
    """

    @property
    def generation(self) -> int:
        """The generation's number."""
        ...

    @property
    def rank(self) -> int:
        """This member's rank."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the tensors to exchange are."""
        ...

    def abandon(self, reason: str) -> None:
        """Makes every present and future wait raise. Callable from any thread, any number of times."""
        ...

    def close(self) -> None:
        """Frees what it holds. May block on a broken peer: called off the engine thread."""
        ...

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's integers (int64, as many on every rank), in rank order."""
        ...

    def all_to_all(
        self,
        send_bytes: Tensor,
        send_splits: Sequence[int],
        recv_splits: Sequence[int],
        what: str,
    ) -> PendingExchange:
        """Starts an all-to-all of flat uint8 buffers; splits are in bytes, one a rank.

        `what` names the exchange in errors.
        """
        ...
