"""How the members of a generation meet: through the torch store of the lowest router."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.group import GroupCommunicator, gloo_group, nccl_group
from expertmesh.engine.exchange.local import meet_locally
from expertmesh.engine.exchange.meeting import Meeting

Transport = Literal["local", "gloo", "nccl"]
"""What carries the rows: Unix sockets on one node, gloo (CUDA tensors staged through host memory),
or NCCL where every rank has a GPU of its own."""

c10d: Any = dist
BACKLOG = 1024
"""Connections that may wait to be accepted: all members of a generation call at once."""


class Store:
    """The torch store that a router offers, on `host` alone, for the groups in which it is rank 0."""

    def __init__(self, host: str) -> None:
        self._host = host
        # Left to itself the store would listen on every interface.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family, backlog=BACKLOG)
        port = listener.getsockname()[1]
        self._server = c10d.TCPStore(
            host, port, None, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    @property
    def address(self) -> str:
        """HOST:PORT for the other ranks."""
        return f"{self._host}:{self._server.port}"


def choose_transport(wanted: Transport | Literal["auto"], places: Sequence[tuple[str, str]]) -> Transport:
    """What carries the rows between members at these (node, device) places.

    `auto` is NCCL where every member has a GPU of its own, Unix sockets where all compute on the CPUs
    of one node, and gloo elsewhere.
    """
    if wanted != "auto":
        return wanted
    devices = [device for _, device in places]
    if all(device.startswith("cuda") for device in devices) and len(set(places)) == len(places):
        return "nccl"
    one_node = len({node for node, _ in places}) == 1
    return "local" if one_node and set(devices) == {"cpu"} else "gloo"


def build_communicator(
    *,
    generation: int,
    rank: int,
    members: Sequence[str],
    store_address: str,
    host: str,
    device: torch.device,
    transport: Transport,
    prepare_s: float,
    collective_s: float,
    abandoned: Callable[[], str | None],
) -> Communicator:
    """Meets all ranks of a generation and builds its process group.

    First every rank marks itself ready in the store and waits, in short slices, until all are (the
    others may still be loading weights); then the group is built in one go.

    Args:
        host: the address this rank listens on.
        transport: the same on all ranks.
        abandoned: gives the reason as soon as the generation has been given up, else None.

    Raises:
        GenerationLostError: abandoned, or a member was not ready within `prepare_s`.
    """
    store = _connect(store_address, generation, collective_s)
    meeting = Meeting(generation, store, abandoned)
    store.set(f"ready/{rank}", "1")
    meeting.await_keys({f"ready/{rank}": name for rank, name in enumerate(members)}, prepare_s)
    if transport == "local":
        return meet_locally(meeting, rank=rank, members=members, collective_s=collective_s)
    timeout = timedelta(seconds=collective_s)
    try:
        if transport == "nccl":
            group = meeting.leavable(lambda: nccl_group(store, rank, len(members), timeout))
        else:
            group = meeting.leavable(lambda: gloo_group(store, rank, len(members), timeout, host))
    except RuntimeError as error:
        raise GenerationLostError(generation, f"the process group did not form: {error}") from error
    return GroupCommunicator(
        group,
        generation=generation,
        rank=rank,
        members=members,
        deadline_s=collective_s,
        device=device,
        staged=transport == "gloo",
    )


def _connect(address: str, generation: int, timeout_s: float) -> Any:
    host, _, port = address.rpartition(":")
    try:
        store = c10d.TCPStore(host, int(port), None, is_master=False, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise GenerationLostError(generation, f"no store at {address}: {error}") from error
    return c10d.PrefixStore(f"generation/{generation}", store)
