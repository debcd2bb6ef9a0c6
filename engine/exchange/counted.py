"""Counts the bytes that a member exchanges with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expertmesh.engine.exchange.communicator import Communicator, PendingExchange


@dataclass(slots=True)
class Traffic:
    """Bytes of rows since the start of the process; one thread writes."""

    sent_bytes: int = 0
    received_bytes: int = 0


class CountedCommunicator:
    """A communicator that adds to `traffic` what its all-to-alls carry."""

    def __init__(self, inner: Communicator, traffic: Traffic) -> None:
        self._start = inner.all_to_all
        self._traffic = traffic
        self._inner = inner
        self.abandon, self.close, self.all_gather = inner.abandon, inner.close, inner.all_gather

    @property
    def generation(self) -> int:
        """The generation's number."""
        return self._inner.generation

    @property
    def rank(self) -> int:
        """This member's rank."""
        return self._inner.rank

    @property
    def device(self) -> torch.device:
        """Where the tensors to exchange are."""
        return self._inner.device

    def all_to_all(
        self, send_bytes: Tensor, send_splits: Sequence[int], recv_splits: Sequence[int], what: str
    ) -> PendingExchange:
        """See `Communicator`. What is begun counts, whether or not it arrives."""
        self._traffic.sent_bytes += sum(send_splits)
        self._traffic.received_bytes += sum(recv_splits)
        return self._start(send_bytes, send_splits, recv_splits, what)
