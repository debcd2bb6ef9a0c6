"""Real processes in a gloo group: each test function runs on every rank."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

from expertmesh.engine.exchange.group import Communicator, Store, build_communicator

LOOPBACK = "127.0.0.1"


def meet(rank: int, size: int, address: str, deadline_s: float = 30.0) -> Communicator:
    """Joins the group of a test."""
    return build_communicator(
        generation=1,
        rank=rank,
        members=[f"rank {r}" for r in range(size)],
        store_address=address,
        host=LOOPBACK,
        device=torch.device("cpu"),
        exclusive_device=True,
        prepare_s=60,
        collective_s=deadline_s,
        abandoned=lambda: None,
    )


def _main(
    function: Callable[..., Any],
    rank: int,
    size: int,
    address: str,
    results: Any,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        results.put((rank, None, function(meet(rank, size, address), *args)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        raise


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """`run_ranks(function, size, *args)`: `function(communicator, *args)` on every rank, in rank order.

    A rank that raises fails the test with its traceback.
    """

    def run(function: Callable[..., Any], size: int, *args: Any) -> list[Any]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        store = Store(LOOPBACK)
        results = context.SimpleQueue()
        processes = [
            context.Process(target=_main, args=(function, r, size, store.address, results, args))
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
