"""Draining against a coordinator that answers as the real one does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from expertmesh.cli.drain import QUIET_S, drain
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc as rpc


class FakeCoordinator(rpc.CoordinatorServicer):
    """Tells one figure of `open_requests` at each poll, the last one for good."""

    def __init__(self, open_requests: list[int]) -> None:
        self._open = open_requests
        self.n_begun = 0
        self.n_polls = 0

    def BeginDrain(self, request, context):  # noqa: N802
        self.n_begun += 1
        return pb.BeginDrainResponse()

    def GetState(self, request, context):  # noqa: N802
        assert self.n_begun, "asked before the drain began"
        self.n_polls += 1
        figure = self._open.pop(0) if len(self._open) > 1 else self._open[0]
        return pb.TopologyUpdate(outstanding_requests=figure, draining=True)


def stub_of(address: str) -> rpc.CoordinatorStub:
    return rpc.CoordinatorStub(grpc.insecure_channel(address))


@pytest.fixture
def coordinator() -> Iterator:
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")

    def start(*open_requests: int) -> tuple[rpc.CoordinatorStub, FakeCoordinator]:
        fake = FakeCoordinator(list(open_requests))
        rpc.add_CoordinatorServicer_to_server(fake, server)
        server.start()
        return stub_of(f"127.0.0.1:{port}"), fake

    yield start
    server.stop(None)


def test_it_waits_until_no_request_has_been_open_for_a_while(coordinator):
    # A gateway reports what it has just admitted a little later: one zero is not the end.
    stub, fake = coordinator(0, 2, 1, 0)
    seen: list[int] = []
    assert drain(stub, 30, threading.Event(), lambda n, left_s: seen.append(n)) == 0
    assert seen[:4] == [0, 2, 1, 0]
    assert fake.n_begun == 1


def test_it_gives_up_when_the_time_is_over(coordinator):
    stub, _ = coordinator(3)
    started_s = time.monotonic()
    assert drain(stub, 0.5, threading.Event(), lambda n, left_s: None) == 3
    assert 0.5 <= time.monotonic() - started_s < 5


def test_it_stops_at_once_when_told(coordinator):
    stub, _ = coordinator(3)
    at_once = threading.Event()
    assert drain(stub, 30, at_once, lambda n, left_s: at_once.set()) == 3


def test_a_coordinator_that_is_gone_does_not_hold_it_for_ever():
    started_s = time.monotonic()
    assert drain(stub_of("127.0.0.1:1"), 1.0, threading.Event(), lambda n, left_s: None) == -1
    assert time.monotonic() - started_s < 10


def test_nothing_open_takes_little_more_than_the_quiet_time(coordinator):
    stub, _ = coordinator(0)
    started_s = time.monotonic()
    assert drain(stub, 30, threading.Event(), lambda n, left_s: None) == 0
    assert QUIET_S <= time.monotonic() - started_s < QUIET_S + 5
