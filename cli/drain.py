"""Lets running requests finish: gateways stop admitting, then the number of open requests falls to zero."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

import grpc

from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc as rpc

POLL_S = 0.2
CALL_S = 2.0
QUIET_POLLS = 3
"""So many polls in a row without an open request: what a gateway had just admitted has been reported."""


def drain(address: str, drain_s: float, at_once: Event, report: Callable[[int, float], None]) -> int:
    """Asks the coordinator to drain, and waits until no request is open.

    Args:
        address: HOST:PORT of the coordinator.
        drain_s: the longest wait.
        at_once: ends the wait when set.
        report: told the open requests and the seconds left, at every poll.

    Returns:
        Requests that are still open; -1 when the coordinator did not answer.
    """
    deadline_s = time.monotonic() + drain_s
    open_requests, quiet, asked = -1, 0, False
    with grpc.insecure_channel(address) as channel:
        coordinator = rpc.CoordinatorStub(channel)
        while quiet < QUIET_POLLS:
            try:
                if not asked:
                    coordinator.BeginDrain(pb.BeginDrainRequest(), timeout=CALL_S)
                    asked = True
                open_requests = coordinator.GetState(
                    pb.GetStateRequest(), timeout=CALL_S
                ).outstanding_requests
                quiet = quiet + 1 if open_requests == 0 else 0
            except grpc.RpcError:
                # A coordinator that restarts has forgotten the drain.
                asked = False
            left_s = deadline_s - time.monotonic()
            report(open_requests, max(left_s, 0.0))
            if left_s <= 0 or at_once.wait(POLL_S):
                break
    return open_requests
