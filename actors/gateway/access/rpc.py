"""The gate in front of the RPCs, and their errors as statuses.

Serve calls a method of the ingress class by the RPC's name, with the request and `grpc_context`. The
decorators here make such methods out of ones that take the request and the caller.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from ray.serve.grpc_util import RayServegRPCContext

from expertmesh.actors.gateway.access.gate import REQUEST_ID, Caller, Gate
from expertmesh.actors.gateway.access.level import Access, needs
from expertmesh.actors.gateway.errors import GatewayError
from expertmesh.actors.gateway.rpc import GRPC_CODE

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Guarded(Protocol):
    """What has RPCs."""

    gate: Gate


def unary(
    access: Access, answer: Callable[[], T]
) -> Callable[[Callable[[Any, Any, Caller], Awaitable[T]]], Callable[..., Awaitable[T]]]:
    """An RPC with one answer.

    Args:
        access: what it needs.
        answer: makes an empty one, which Serve sends under an error's status.
    """

    def declare(method: Callable[[Any, Any, Caller], Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def call(self: Guarded, request: Any, grpc_context: RayServegRPCContext) -> T:
            try:
                return await method(self, request, _admit(self.gate, grpc_context, access))
            except GatewayError as error:
                # Serve would log what is raised as a crash.
                _set_status(grpc_context, error)
                return answer()

        return needs(access)(_named(call, method))

    return declare


def streaming(
    access: Access,
) -> Callable[
    [Callable[[Any, Any, Caller], AsyncGenerator[T, None]]], Callable[..., AsyncGenerator[T, None]]
]:
    """An RPC with a stream of answers.

    Args:
        access: what it needs.
    """

    def declare(
        method: Callable[[Any, Any, Caller], AsyncGenerator[T, None]],
    ) -> Callable[..., AsyncGenerator[T, None]]:
        async def call(
            self: Guarded, request: Any, grpc_context: RayServegRPCContext
        ) -> AsyncGenerator[T, None]:
            try:
                caller = _admit(self.gate, grpc_context, access)
                async with aclosing(method(self, request, caller)) as stream:
                    async for message in stream:
                        yield message
            except GatewayError as error:
                # The status of a stream that ends in peace is always OK, so it has to be broken. The
                # exception crosses to the proxy, which may not have this package: it is a built-in one.
                _set_status(grpc_context, error)
                raise RuntimeError(error.message) from None

        return needs(access)(_named(call, method))

    return declare


def _admit(gate: Gate, grpc_context: RayServegRPCContext, access: Access) -> Caller:
    caller = gate.admit(dict(grpc_context.invocation_metadata()), access)
    if caller.request_id:
        grpc_context.set_trailing_metadata([(REQUEST_ID, caller.request_id)])
    return caller


def _set_status(grpc_context: RayServegRPCContext, error: GatewayError) -> None:
    grpc_context.set_code(GRPC_CODE[error.kind])
    grpc_context.set_details(error.message)
    if error.retry_after_s is not None:
        grpc_context.set_trailing_metadata([("retry-after", str(error.retry_after_s))])


def _named(call: F, method: Any) -> F:
    """Not `functools.wraps`: Serve has to see the parameters of `call`."""
    call.__name__, call.__qualname__, call.__doc__ = method.__name__, method.__qualname__, method.__doc__
    return call
