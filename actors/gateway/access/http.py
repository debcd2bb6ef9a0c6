"""The gate in front of the HTTP routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from expertmesh.actors.gateway.access.gate import Caller, Gate
from expertmesh.actors.gateway.access.level import stated_access


def http_check(gate: Gate) -> Callable[[Request], Awaitable[None]]:
    """A dependency of the whole application: each route is checked for what `needs` states at it."""

    async def check(request: Request) -> None:
        # As a coroutine, so that it runs here and not on a thread.
        request.state.caller = gate.admit(request.headers, stated_access(request.scope["endpoint"]))

    return check


def caller_of(request: Request) -> Caller:
    """Who a request is from, behind the check."""
    caller: Caller = request.state.caller
    return caller
