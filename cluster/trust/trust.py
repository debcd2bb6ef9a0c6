"""What servers and clients of the internal gRPC services are made with."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from expertmesh.cluster.trust.stamp import Secrets, StampChecker, new_stamp
from expertmesh.cluster.trust.tls import TlsFiles

logger = logging.getLogger(__name__)

JOIN = "/expertmesh.internal.v1.Membership/Join"
CONTROL = "/expertmesh.internal.v1.Coordinator/"
"""And the method's name behind it."""
SESSION = "/expertmesh.internal.v1.RouterStream/Session"
STAMP_KEY = "expertmesh-stamp"
ChannelOptions = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Trust:
    """How a process is known to the others of its deployment, and they to it."""

    secrets: Secrets | None = None
    """None: nobody is asked for one. Where there are none yet, nobody is let in."""
    tls: TlsFiles | None = None

    def server(self, options: ChannelOptions = ()) -> TrustedServer:
        """A server whose every method is guarded."""
        return TrustedServer(self, options)

    def metadata(self, method: str, address: str) -> tuple[tuple[str, str], ...]:
        """What a call of this process has to carry.

        Args:
            method: the RPC's full name, `/package.Service/Method`.
            address: the server's HOST:PORT, as it was told.
        """
        held = self.secrets() if self.secrets is not None else ()
        return ((STAMP_KEY, new_stamp(held[0], method, address)),) if held else ()

    def channel(self, address: str, options: ChannelOptions = ()) -> grpc.aio.Channel:
        """A channel for an event loop.

        Raises:
            TlsError: the certificates cannot be read.
        """
        if self.tls is None:
            return grpc.aio.insecure_channel(address, options)
        named = [*options, ("grpc.ssl_target_name_override", self.tls.server_name)]
        return grpc.aio.secure_channel(address, self.tls.channel_credentials(), named)

    def blocking_channel(self, address: str) -> grpc.Channel:
        """A channel for threads, whose unary calls carry what they need.

        Raises:
            TlsError: the certificates cannot be read.
        """
        if self.tls is None:
            channel = grpc.insecure_channel(address)
        else:
            named = [("grpc.ssl_target_name_override", self.tls.server_name)]
            channel = grpc.secure_channel(address, self.tls.channel_credentials(), named)
        return grpc.intercept_channel(channel, _Stamping(self, address))


UNGUARDED = Trust()
"""For tests of something else."""


class TrustedServer:
    """A gRPC server on one interface.

    Args:
        trust: whom it lets in.
        options: of the server.
    """

    def __init__(self, trust: Trust, options: ChannelOptions = ()) -> None:
        self._trust = trust
        self._guard = _Guard(trust)
        self.grpc = grpc.aio.server(
            interceptors=() if trust.secrets is None else (self._guard,), options=list(options)
        )
        """For the generated functions that add services."""

    async def start(self, host: str, port: int = 0) -> str:
        """Serves on `host` alone; gives HOST:PORT. Port 0 takes a free one.

        Raises:
            TlsError: the certificates cannot be read.
        """
        if self._trust.tls is None:
            bound = self.grpc.add_insecure_port(f"{host}:{port}")
        else:
            bound = self.grpc.add_secure_port(f"{host}:{port}", self._trust.tls.server_credentials())
        address = f"{host}:{bound}"
        self._guard.address = address
        await self.grpc.start()
        return address

    async def stop(self, grace_s: float | None = None) -> None:
        """Ends it, with what runs after `grace_s`."""
        await self.grpc.stop(grace_s)


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc's stubs have it as Any
    """Refuses calls without a good stamp, whatever their method."""

    def __init__(self, trust: Trust) -> None:
        self._checker = StampChecker(trust.secrets or (lambda: ()))
        self.address = ""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        problem = self._checker.problem(str(metadata.get(STAMP_KEY, "")), method, self.address)
        handler = await continuation(handler_call_details)
        if not problem or handler is None:
            return handler
        logger.warning("a call of %s was refused: it has %s", method, problem)
        return _refusing(handler, f"refused: the call has {problem}")


def _refusing(handler: Any, reason: str) -> Any:
    """A handler of the same kind that refuses."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return kind(refuse, handler.request_deserializer, handler.response_serializer)


class _Stamping(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc's stubs have it as Any
    """Gives every unary call its stamp."""

    def __init__(self, trust: Trust, address: str) -> None:
        self._trust = trust
        self._address = address

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), *self._trust.metadata(details.method, self._address))
        return continuation(details._replace(metadata=metadata), request)
