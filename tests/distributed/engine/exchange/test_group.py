"""Waiting on a group: abandoning, deadlines, and a peer that is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from expertmesh.engine.errors import GenerationLostError
from expertmesh.engine.exchange.group import Communicator, Store, build_communicator


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


def test_abandon_ends_a_wait(run_ranks: Callable[..., list[Any]]) -> None:
    message = run_ranks(wait_and_be_abandoned, 2)[0]
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


def test_a_dead_peer_ends_the_wait_before_the_deadline(
    run_ranks: Callable[..., list[Any]],
) -> None:
    message, waited_s = run_ranks(die_in_the_middle, 2)[0]
    assert "the step's headers" in message
    assert waited_s < 30, "the backstop is not what ended it"


def test_a_member_that_never_comes_is_named() -> None:
    store = Store("127.0.0.1")
    with pytest.raises(GenerationLostError, match="host E0 not ready within 0"):
        build_communicator(
            generation=1,
            rank=0,
            members=["router R0", "host E0"],
            store_address=store.address,
            host="127.0.0.1",
            device=torch.device("cpu"),
            exclusive_device=True,
            prepare_s=0.2,
            collective_s=5,
            abandoned=lambda: None,
        )
