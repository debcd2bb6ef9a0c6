"""One process group a generation: gloo or NCCL, waited on with deadlines.

A collective is polled in short slices, so that an abandoned group is left at once; the collective's
own timeout is only a backstop. A broken group is never used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import PendingExchange

WAIT_SLICE_S = 0.05

# Stores and process groups without a default group: torch has them, its stubs do not.
c10d: Any = dist


class GroupCommunicator:
    """`engine.exchange.communicator.Communicator` over a torch.distributed group."""

    def __init__(
        self,
        group: Any,
        *,
        generation: int,
        rank: int,
        members: Sequence[str],
        deadline_s: float,
        device: torch.device,
        staged: bool,
    ) -> None:
        self.generation = generation
        self.rank = rank
        self.size = len(members)
        self.device = device
        self._group = group
        self._members = tuple(members)
        self._deadline_s = deadline_s
        self._staged = staged
        self._abandoned: str | None = None

    def abandon(self, reason: str) -> None:
        """Makes every present and future wait raise."""
        if self._abandoned is None:
            self._abandoned = reason

    def close(self) -> None:
        """Drops the group. Its destructor may block on a broken peer: call it off the engine thread."""
        self.abandon("closed")
        self._group = None

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's integers, in rank order."""
        own = torch.tensor(values, dtype=torch.int64)
        gathered = torch.empty(self.size * len(values), dtype=torch.int64)
        if not self._staged:
            own, gathered = own.to(self.device), gathered.to(self.device)
        self._wait(self._start(self._group._allgather_base, gathered, own), "the step's headers")
        rows: list[list[int]] = gathered.view(self.size, len(values)).tolist()
        return rows

    def all_to_all(
        self,
        send_bytes: Tensor,
        send_splits: Sequence[int],
        recv_splits: Sequence[int],
        what: str,
    ) -> PendingExchange:
        """Starts an all-to-all of uint8 buffers; splits are in bytes, one a rank."""
        recv_bytes = torch.empty(sum(recv_splits), dtype=torch.uint8, device=send_bytes.device)
        sent = send_bytes.cpu() if self._staged and send_bytes.is_cuda else send_bytes
        received = recv_bytes.cpu() if sent is not send_bytes else recv_bytes
        work = self._start(self._group.alltoall_base, received, sent, list(recv_splits), list(send_splits))

        def finish() -> Tensor:
            self._wait(work, what)
            return received if received is recv_bytes else recv_bytes.copy_(received)

        return PendingExchange(finish, sent)

    def _start(self, collective: Callable[..., Any], *args: Any) -> Any:
        self._raise_if_abandoned()
        try:
            return collective(*args)
        except RuntimeError as error:
            raise GenerationLostError(self.generation, f"a collective failed to start: {error}") from error

    def _wait(self, work: Any, what: str) -> None:
        started_s = time.monotonic()
        while not self._finished(work, what, started_s):
            self._raise_if_abandoned()
            waited_s = time.monotonic() - started_s
            if waited_s > self._deadline_s:
                raise GenerationLostError(
                    self.generation,
                    f"rank {self.rank} waited {waited_s:.1f} s for {what} from {', '.join(self._members)}",
                )

    def _finished(self, work: Any, what: str, started_s: float) -> bool:
        """Waits for one slice. An operation may also finish just after its slice has run out."""
        try:
            work.wait(timedelta(seconds=WAIT_SLICE_S))
        except RuntimeError:
            if not work.is_completed():
                return False
            try:
                work.wait()
            except RuntimeError as error:
                self._raise_if_abandoned()
                waited_s = time.monotonic() - started_s
                raise GenerationLostError(
                    self.generation, f"{what} broke off after {waited_s:.1f} s: {error}"
                ) from error
        return True

    def _raise_if_abandoned(self) -> None:
        if self._abandoned is not None:
            raise GenerationLostError(self.generation, self._abandoned)


def gloo_group(store: Any, rank: int, size: int, timeout: timedelta, host: str) -> Any:
    """A gloo group whose connections listen on `host` alone."""
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    options._threads = 2
    return c10d.ProcessGroupGloo(store, rank, size, options)


def nccl_group(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """An NCCL group; every rank needs a GPU of its own."""
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return c10d.ProcessGroupNCCL(store, rank, size, options)
