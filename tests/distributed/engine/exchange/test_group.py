"""Waiting on a group: abandoning, deadlines, and a peer that is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.meeting import Meeting
from expertmesh.engine.exchange.rendezvous import Store, Transport, build_communicator, choose_transport

TRANSPORTS: list[Transport] = ["local", "gloo"]


def wait_and_be_abandoned(communicator: Communicator) -> str:
    """Rank 0 waits for rank 1, which never enters, until another thread gives the group up."""
    if communicator.rank == 1:
        return ""
    entered = threading.Event()

    def give_up() -> None:
        entered.wait(10)
        communicator.abandon("host E7 died")

    thread = threading.Thread(target=give_up)
    thread.start()
    entered.set()
    with pytest.raises(GenerationLostError) as lost:
        communicator.all_gather([1, 2])
    thread.join()
    # A second use fails at once, too.
    with pytest.raises(GenerationLostError):
        communicator.all_to_all(torch.empty(0, dtype=torch.uint8), [0, 0], [0, 0], "nothing")
    return str(lost.value)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_abandon_ends_a_wait(run_ranks: Callable[..., list[Any]], transport: Transport) -> None:
    message = run_ranks(wait_and_be_abandoned, 2, transport=transport)[0]
    assert message.startswith("generation 1 is lost: ")


def die_in_the_middle(communicator: Communicator) -> tuple[str, float]:
    """All ranks meet once; then rank 1 dies and the others wait for it."""
    communicator.all_gather([communicator.rank])
    if communicator.rank == 1:
        return "", 0.0
    started_s = time.monotonic()
    with pytest.raises(GenerationLostError) as lost:
        communicator.all_gather([communicator.rank])
    return str(lost.value), time.monotonic() - started_s


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_dead_peer_ends_the_wait_before_the_deadline(
    run_ranks: Callable[..., list[Any]], transport: Transport
) -> None:
    message, waited_s = run_ranks(die_in_the_middle, 2, transport=transport)[0]
    assert "the step's headers" in message
    assert waited_s < 30, "the backstop is not what ended it"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_member_that_never_comes_is_named(transport: Transport) -> None:
    store = Store("127.0.0.1")
    with pytest.raises(GenerationLostError, match=r": host E0 not ready within 0\.2 s"):
        build_communicator(
            generation=1,
            rank=0,
            members=["router R0", "host E0"],
            store_address=store.address,
            host="127.0.0.1",
            device=torch.device("cpu"),
            transport=transport,
            prepare_s=0.2,
            collective_s=30,
            abandoned=lambda: None,
        )


def test_who_is_ready_is_not_named() -> None:
    store = torch.distributed.HashStore()
    store.set("ready/1", "1")
    store.set("ready/3", "1")
    names = {"ready/0": "router R0", "ready/1": "router R1", "ready/2": "host E0", "ready/3": "host E1"}
    with pytest.raises(GenerationLostError, match=r": router R0, host E0 not ready within 0\.2 s"):
        Meeting(1, store, lambda: None).await_keys(names, 0.2)
    store.set("ready/0", "1")
    store.set("ready/2", "1")
    Meeting(1, store, lambda: None).await_keys(names, 0.0)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_abandoned_meeting_is_left_at_once_and_holds_up_no_other(transport: Transport) -> None:
    """Rank 2 is ready, and then never comes: the others are busy meeting it when they are told to leave."""
    store = Store("127.0.0.1")
    given_up = threading.Event()

    def meet(generation: int, rank: int, size: int) -> Communicator:
        return build_communicator(
            generation=generation,
            rank=rank,
            members=[f"rank {r}" for r in range(size)],
            store_address=store.address,
            host="127.0.0.1",
            device=torch.device("cpu"),
            transport=transport,
            prepare_s=60,
            collective_s=60,
            abandoned=lambda: "rank 2 was lost" if generation == 1 and given_up.is_set() else None,
        )

    address, _, port = store.address.rpartition(":")
    client = torch.distributed.TCPStore(address, int(port), None, is_master=False)
    first = torch.distributed.PrefixStore("generation/1", client)
    first.set("ready/2", "1")
    with ThreadPoolExecutor() as pool:
        stuck = [pool.submit(meet, 1, rank, 3) for rank in range(2)]
        first.wait(["ready/0", "ready/1"])
        given_up.set()
        begun_s = time.monotonic()
        for rank in stuck:
            with pytest.raises(GenerationLostError, match="rank 2 was lost"):
                rank.result()
        communicators = list(pool.map(lambda rank: meet(2, rank, 2), range(2)))
        gathered = list(pool.map(lambda c: c.all_gather([c.rank]), communicators))
    assert gathered == [[[0], [1]]] * 2
    assert time.monotonic() - begun_s < 50, "nothing waited for the first meeting's own end"
    for communicator in communicators:
        communicator.close()


def test_transport_follows_the_places_of_the_members() -> None:
    assert choose_transport("auto", [("a", "cpu"), ("a", "cpu")]) == "local"
    assert choose_transport("auto", [("a", "cpu"), ("b", "cpu")]) == "gloo"
    assert choose_transport("auto", [("a", "cuda:0"), ("a", "cuda:0")]) == "gloo"
    assert choose_transport("auto", [("a", "cuda:0"), ("b", "cuda:0"), ("a", "cuda:1")]) == "nccl"
    assert choose_transport("gloo", [("a", "cpu")]) == "gloo"


def shuffle_megabytes(communicator: Communicator, n_bytes: int) -> list[int]:
    """Everybody sends everybody (itself, too) more than a socket buffer holds, all at once."""
    size = 3
    sent = torch.cat(
        [torch.full((n_bytes + to,), 10 * communicator.rank + to, dtype=torch.uint8) for to in range(size)]
    )
    received = communicator.all_to_all(
        sent, [n_bytes + to for to in range(size)], [n_bytes + communicator.rank] * size, "megabytes"
    ).wait()
    parts = received.split(n_bytes + communicator.rank)
    assert all((part == part[0]).all() for part in parts)
    return [int(part[0]) for part in parts]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_to_all_larger_than_any_buffer(
    run_ranks: Callable[..., list[Any]], transport: Transport
) -> None:
    received = run_ranks(shuffle_megabytes, 3, 20_000_000, transport=transport)
    assert received == [[to, 10 + to, 20 + to] for to in range(3)]
