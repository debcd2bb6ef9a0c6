"""The ranks of one node over Unix sockets: the form of the exchange with the least latency on CPUs.

A collective on gloo costs three ranks on two cores about a millisecond, most of it spent on waking
its helper threads. Here a rank writes to its peers and sleeps in `poll` until they have answered.
The end of a peer's process ends its socket, so that a dead rank is noticed at once and named.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import PendingExchange
from expertmesh.engine.exchange.meeting import Meeting

WAIT_SLICE_MS = 50
BUFFER_BYTES = 4 << 20
_GREETING = struct.Struct("<q16s")
_CREDENTIALS = struct.Struct("3i")
"""Process, user and group of a peer."""


@dataclass(slots=True)
class _Transfer:
    """Bytes still to be sent and received, by peer."""

    sends: dict[int, memoryview] = field(default_factory=dict)
    receives: dict[int, memoryview] = field(default_factory=dict)


class LocalCommunicator:
    """`engine.exchange.communicator.Communicator` between processes of one node, on the CPU.

    Args:
        peers: a connected stream socket for every other rank.
        members: a name for every rank, for error messages.
        deadline_s: backstop of one collective.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        peers: dict[int, socket.socket],
        *,
        generation: int,
        rank: int,
        members: Sequence[str],
        deadline_s: float,
    ) -> None:
        self.generation = generation
        self.rank = rank
        self._peers = peers
        self._members = tuple(members)
        self._deadline_s = deadline_s
        self._abandoned: str | None = None

    def abandon(self, reason: str) -> None:
        """Makes every present and future wait raise. Callable from any thread, any number of times."""
        if self._abandoned is None:
            self._abandoned = reason

    def close(self) -> None:
        """Closes the sockets."""
        self.abandon("closed")
        for peer in self._peers.values():
            peer.close()

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's integers, in rank order."""
        layout = struct.Struct(f"<{len(values)}q")
        own = memoryview(layout.pack(*values))
        received = {rank: bytearray(layout.size) for rank in self._peers}
        self._finish(
            _Transfer(dict.fromkeys(self._peers, own), {r: memoryview(b) for r, b in received.items()}),
            "the step's headers",
        )
        rows = {rank: list(layout.unpack(data)) for rank, data in received.items()}
        rows[self.rank] = list(values)
        return [rows[rank] for rank in range(len(self._members))]

    def all_to_all(
        self,
        send_bytes: Tensor,
        send_splits: Sequence[int],
        recv_splits: Sequence[int],
        what: str,
    ) -> PendingExchange:
        """Sends what the peers take at once; the rest goes out while `wait` receives."""
        recv_bytes = torch.empty(sum(recv_splits), dtype=torch.uint8)
        sends = _parts(send_bytes, send_splits)
        receives = _parts(recv_bytes, recv_splits)
        if self.rank in sends:
            receives.pop(self.rank)[:] = sends.pop(self.rank)
        transfer = _Transfer(sends, receives)
        self._raise_if_abandoned()
        self._send(transfer, what)

        def finish() -> Tensor:
            self._finish(transfer, what)
            return recv_bytes

        return PendingExchange(finish, send_bytes)

    # ------------------------------------------------------------ moving bytes

    def _finish(self, transfer: _Transfer, what: str) -> None:
        self._raise_if_abandoned()
        self._send(transfer, what)
        self._receive(transfer, what)
        if transfer.sends or transfer.receives:
            started_s = time.monotonic()
            while transfer.sends or transfer.receives:
                self._wait(transfer, what, started_s)
                self._send(transfer, what)
                self._receive(transfer, what)

    def _send(self, transfer: _Transfer, what: str) -> None:
        for rank, data in list(transfer.sends.items()):
            try:
                n_bytes = self._peers[rank].send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost(rank, what, error.strerror or "is gone") from error
            if n_bytes == len(data):
                del transfer.sends[rank]
            else:
                transfer.sends[rank] = data[n_bytes:]

    def _receive(self, transfer: _Transfer, what: str) -> None:
        for rank, buffer in list(transfer.receives.items()):
            try:
                n_bytes = self._peers[rank].recv_into(buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost(rank, what, error.strerror or "is gone") from error
            if n_bytes == 0:
                raise self._lost(rank, what, "closed its connection")
            if n_bytes == len(buffer):
                del transfer.receives[rank]
            else:
                transfer.receives[rank] = buffer[n_bytes:]

    def _wait(self, transfer: _Transfer, what: str, started_s: float) -> None:
        """Sleeps until a socket is ready, at most a slice."""
        poll = select.poll()
        for rank in transfer.receives.keys() | transfer.sends.keys():
            events = (select.POLLIN if rank in transfer.receives else 0) | (
                select.POLLOUT if rank in transfer.sends else 0
            )
            poll.register(self._peers[rank], events)
        if poll.poll(WAIT_SLICE_MS):
            return
        self._raise_if_abandoned()
        waited_s = time.monotonic() - started_s
        if waited_s > self._deadline_s:
            missing = sorted(transfer.receives.keys() | transfer.sends.keys())
            names = ", ".join(self._members[rank] for rank in missing)
            raise GenerationLostError(
                self.generation, f"rank {self.rank} waited {waited_s:.1f} s for {what} from {names}"
            )

    def _lost(self, rank: int, what: str, how: str) -> GenerationLostError:
        reason = self._abandoned or f"{self._members[rank]} {how} during {what}"
        return GenerationLostError(self.generation, reason)

    def _raise_if_abandoned(self) -> None:
        if self._abandoned is not None:
            raise GenerationLostError(self.generation, self._abandoned)


def _parts(flat: Tensor, splits: Sequence[int]) -> dict[int, memoryview]:
    """The non-empty parts of a flat uint8 tensor, by rank."""
    array: Any = flat.contiguous().numpy()
    data = memoryview(array)
    parts, start = {}, 0
    for rank, n_bytes in enumerate(splits):
        if n_bytes:
            parts[rank] = data[start : start + n_bytes]
        start += n_bytes
    return parts


class Listener:
    """A rank's end of the meeting: an abstract Unix socket, which leaves no file. Only the same user's
    processes that know the key may join."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.name = f"expertmesh-{secrets.token_hex(16)}"
        self._socket.bind(f"\0{self.name}")
        self._socket.listen(128)

    def accept(
        self, n_peers: int, key: bytes, deadline_s: float, check: Callable[[], None]
    ) -> dict[int, socket.socket]:
        """The connections of `n_peers` ranks that know the key. `check` is called in every slice of the
        wait, and may raise. Raises TimeoutError, OSError."""
        peers: dict[int, socket.socket] = {}
        self._socket.settimeout(WAIT_SLICE_MS / 1000)
        while len(peers) < n_peers:
            try:
                peer, _ = self._socket.accept()
            except TimeoutError:
                check()
                if time.monotonic() > deadline_s:
                    raise
                continue
            peer.settimeout(max(deadline_s - time.monotonic(), 0.001))
            greeting = peer.recv(_GREETING.size, socket.MSG_WAITALL)
            rank, shown = _GREETING.unpack(greeting) if len(greeting) == _GREETING.size else (-1, b"")
            if not secrets.compare_digest(shown, key) or _user_of(peer) != os.geteuid():
                peer.close()
                continue
            peers[rank] = _tuned(peer)
        return peers

    def close(self) -> None:
        """Takes no more connections."""
        self._socket.close()


def connect(name: str, rank: int, key: bytes, deadline_s: float) -> socket.socket:
    """Joins another rank's listener. Raises OSError."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(max(deadline_s - time.monotonic(), 0.001))
    peer.connect(f"\0{name}")
    peer.sendall(_GREETING.pack(rank, key))
    return _tuned(peer)


def _user_of(peer: socket.socket) -> int:
    """The user whose process is at the other end, as the kernel knows it."""
    _, user, _ = _CREDENTIALS.unpack(
        peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return int(user)


def _tuned(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    return peer


def meet_locally(
    meeting: Meeting, *, rank: int, members: Sequence[str], collective_s: float
) -> LocalCommunicator:
    """Connects every pair of ranks: each listens, and joins all ranks below its own.

    Args:
        meeting: whose ranks have all marked themselves ready in its store.

    Raises:
        GenerationLostError: a rank could not be reached within `collective_s`, or the generation has been
            given up.
    """
    generation, store = meeting.generation, meeting.store
    deadline_s = time.monotonic() + collective_s
    listener = Listener()

    def told(name: str, by: int) -> str:
        """What a rank writes into the store."""
        meeting.await_keys({name: members[by]}, max(deadline_s - time.monotonic(), 0.0))
        value: str = store.get(name).decode()
        return value

    try:
        if rank == 0:
            store.set("local/key", secrets.token_bytes(16).hex())
        store.set(f"local/{rank}", listener.name)
        key = bytes.fromhex(told("local/key", by=0))
        peers = {
            lower: connect(told(f"local/{lower}", by=lower), rank, key, deadline_s) for lower in range(rank)
        }
        peers |= listener.accept(len(members) - 1 - rank, key, deadline_s, meeting.check)
    except GenerationLostError:
        raise
    except (OSError, RuntimeError) as error:
        raise GenerationLostError(
            generation, f"the ranks did not meet within {collective_s:.0f} s: {error}"
        ) from error
    finally:
        listener.close()
    return LocalCommunicator(
        peers, generation=generation, rank=rank, members=members, deadline_s=collective_s
    )
