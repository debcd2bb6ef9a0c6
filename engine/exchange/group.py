"""One process group a generation: building it, and waiting on it with deadlines.

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

WAIT_SLICE_S = 0.05
POLL_S = 0.01

# Stores and process groups without a default group: torch has them, its stubs do not.
c10d: Any = dist


class Store:
    """The torch store that a router offers for the groups in which it is rank 0."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._server = c10d.TCPStore(host, 0, None, is_master=True, wait_for_workers=False)

    @property
    def address(self) -> str:
        """HOST:PORT for the other ranks."""
        return f"{self._host}:{self._server.port}"


class Communicator:
    """The ranks of one generation and the two collectives that a step is made of.

    Every wait has a deadline (`deadline_s`) and ends early when `abandon` is called from any thread;
    both raise `GenerationLostError`.
    """

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
        self.waited_s = 0.0
        self._group = group
        self._members = tuple(members)
        self._deadline_s = deadline_s
        self._staged = staged
        self._abandoned: str | None = None

    def abandon(self, reason: str) -> None:
        """Makes every present and future wait raise. Callable from any thread, any number of times."""
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
        self.waited_s += time.monotonic() - started_s

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


class PendingExchange:
    """An all-to-all under way. `wait` gives what was received; the sent buffer lives until then."""

    def __init__(self, finish: Callable[[], Tensor], sent: Tensor) -> None:
        self._finish = finish
        self._sent = sent

    def wait(self) -> Tensor:
        """The received uint8 buffer. Raises `GenerationLostError`."""
        return self._finish()


def build_communicator(
    *,
    generation: int,
    rank: int,
    members: Sequence[str],
    store_address: str,
    host: str,
    device: torch.device,
    exclusive_device: bool,
    prepare_s: float,
    collective_s: float,
    abandoned: Callable[[], str | None],
) -> Communicator:
    """Meets all ranks of a generation and builds its process group.

    First every rank marks itself ready in the store and waits, in short slices, until all are (the
    others may still be loading weights); then the group is built in one go.

    Args:
        host: the address this rank listens on.
        exclusive_device: on CUDA, whether no other rank shares the GPU: NCCL needs that, else gloo
            carries the data through host memory.
        abandoned: gives the reason as soon as the generation has been given up, else None.

    Raises:
        GenerationLostError: abandoned, or a member was not ready within `prepare_s`.
    """
    store = _connect(store_address, generation, collective_s)
    store.set(f"ready/{rank}", "1")
    _await_ready(store, generation, members, prepare_s, abandoned)
    timeout = timedelta(seconds=collective_s)
    nccl = device.type == "cuda" and exclusive_device
    try:
        group = (
            _nccl_group(store, rank, len(members), timeout)
            if nccl
            else _gloo_group(store, rank, len(members), timeout, host)
        )
    except RuntimeError as error:
        raise GenerationLostError(generation, f"the process group did not form: {error}") from error
    return Communicator(
        group,
        generation=generation,
        rank=rank,
        members=members,
        deadline_s=collective_s,
        device=device,
        staged=not nccl,
    )


def _connect(address: str, generation: int, timeout_s: float) -> Any:
    host, _, port = address.rpartition(":")
    try:
        store = c10d.TCPStore(host, int(port), None, is_master=False, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise GenerationLostError(generation, f"no store at {address}: {error}") from error
    return c10d.PrefixStore(f"generation/{generation}", store)


def _await_ready(
    store: Any,
    generation: int,
    members: Sequence[str],
    prepare_s: float,
    abandoned: Callable[[], str | None],
) -> None:
    deadline_s = time.monotonic() + prepare_s
    missing = dict(enumerate(members))
    while missing:
        reason = abandoned()
        if reason is not None:
            raise GenerationLostError(generation, reason)
        if time.monotonic() > deadline_s:
            raise GenerationLostError(
                generation, f"{', '.join(missing.values())} not ready within {prepare_s:.0f} s"
            )
        rank = next(iter(missing))
        try:
            if store.check([f"ready/{rank}"]):
                del missing[rank]
            else:
                time.sleep(POLL_S)
        except RuntimeError as error:
            raise GenerationLostError(generation, f"the store is gone: {error}") from error


def _gloo_group(store: Any, rank: int, size: int, timeout: timedelta, host: str) -> Any:
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    options._threads = 2
    return c10d.ProcessGroupGloo(store, rank, size, options)


def _nccl_group(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return c10d.ProcessGroupNCCL(store, rank, size, options)
