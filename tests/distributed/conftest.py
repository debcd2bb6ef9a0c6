"""Real processes in a gloo group: each test function runs on every rank."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
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
    result: Connection,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        result.send((None, function(meet(rank, size, address, transport), *args)))
    except BaseException:
        result.send((traceback.format_exc(), None))
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
        processes, results = [], []
        for rank in range(size):
            reader, writer = context.Pipe(duplex=False)
            results.append(reader)
            arguments = (function, rank, size, store.address, transport, writer, args)
            processes.append(context.Process(target=_main, args=arguments))
            processes[-1].start()
            writer.close()  # so that the end of the process is the end of the pipe
        values = []
        for rank, result in enumerate(results):
            try:
                error, value = result.recv()
            except EOFError:
                error = "ended without a word"
            assert error is None, f"rank {rank}:\n{error}"
            values.append(value)
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        return values

    return run
