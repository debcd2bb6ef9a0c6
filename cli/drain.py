"""Lets running requests finish: gateways stop admitting, then the number of open requests falls to zero."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import grpc

from expertmesh.cluster.member import LOAD_INTERVAL_S
from expertmesh.proto.v1 import internal_pb2 as pb

POLL_S = 0.2
CALL_S = 2.0
QUIET_S = LOAD_INTERVAL_S + 0.5
"""So long without an open request: what a gateway had just admitted has been reported by then."""


def drain(coordinator: Any, drain_s: float, at_once: Event, report: Callable[[int, float], None]) -> int:
    """Asks the coordinator to drain, and waits until no request is open.

    Args:
        coordinator: a stub of internal.v1.Coordinator.
        drain_s: the longest wait.
        at_once: ends the wait when set.
        report: told the open requests and the seconds left, at every poll.

    Returns:
        Requests that are still open; -1 when the coordinator did not answer.
    """
    deadline_s = time.monotonic() + drain_s
    open_requests, asked = -1, False
    quiet_since_s = math.inf
    while time.monotonic() < quiet_since_s + QUIET_S:
        try:
            if not asked:
                coordinator.BeginDrain(pb.BeginDrainRequest(), timeout=CALL_S)
                asked, quiet_since_s = True, math.inf
            open_requests = coordinator.GetState(pb.GetStateRequest(), timeout=CALL_S).outstanding_requests
            quiet_since_s = math.inf if open_requests else min(quiet_since_s, time.monotonic())
        except grpc.RpcError:
            # A coordinator that restarts has forgotten the drain.
            asked = False
        left_s = deadline_s - time.monotonic()
        report(open_requests, max(left_s, 0.0))
        if left_s <= 0 or at_once.wait(POLL_S):
            break
    return open_requests
