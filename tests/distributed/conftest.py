"""Real processes in a gloo group: each test function runs on every rank."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.rendezvous import Store, Transport, build_communicator

LOOPBACK = "127.0.0.1"


def meet(rank: int, size: int, address: str, transport: Transport) -> Communicator:
    """Joins the group of a test."""
    return build_communicator(
        generation=1,
        rank=rank,
        members=[f"rank {r}" for r in range(size)],
        store_address=address,
        host=LOOPBACK,
        device=torch.device("cpu"),
        transport=transport,
        prepare_s=60,
        collective_s=30,
        abandoned=lambda: None,
    )


def _main(
    function: Callable[..., Any],
    rank: int,
    size: int,
    address: str,
    transport: Transport,
    results: Any,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        results.put((rank, None, function(meet(rank, size, address, transport), *args)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        raise


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several engine threads share the cores of a test: each computes on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """`run_ranks(function, size, *args)`: what `function(communicator, *args)` gives on every rank.

    A rank that raises fails the test with its traceback.
    """

    def run(
        function: Callable[..., Any], size: int, *args: Any, transport: Transport = "gloo"
    ) -> list[Any]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        store = Store(LOOPBACK)
        results = context.SimpleQueue()
        processes = [
            context.Process(target=_main, args=(function, r, size, store.address, transport, results, args))
            for r in range(size)
        ]
        for process in processes:
            process.start()
        outcomes = {}
        for _ in processes:
            rank, error, value = results.get()
            assert error is None, f"rank {rank}:\n{error}"
            outcomes[rank] = value
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        return [outcomes[rank] for rank in range(size)]

    return run
