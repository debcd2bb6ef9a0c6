"""The gateway's stream to one router: sends requests, passes the news on, keeps the lease alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from expertmesh.actors.gateway.open_requests import NewsSink, OpenRequests
from expertmesh.cluster.trust.tls import TlsError
from expertmesh.cluster.trust.trust import SESSION, UNGUARDED, Trust
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc as rpc

logger = logging.getLogger(__name__)

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_CONNECT_S = 10.0
_MIN_RETRY_S = 0.05
_MAX_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """A router of the live generation."""

    incarnation: str
    address: str
    """HOST:PORT of its RouterStream server."""


class RouterLink:
    """One RouterStream session, opened again whenever it ends, until `close`.

    Args:
        router: where the router listens.
        gateway_incarnation: names this gateway to the router.
        lease_s: routers drop the requests of a gateway that has been silent for this long.
        on_change: called when `is_open` has changed.
        trust: how the router knows this process.
    """

    def __init__(
        self,
        router: RouterAddress,
        gateway_incarnation: str,
        lease_s: float,
        on_change: Callable[[], None],
        trust: Trust = UNGUARDED,
    ) -> None:
        self._trust = trust
        self.router = router
        self._gateway_incarnation = gateway_incarnation
        self._keep_alive_s = lease_s / 3
        self._on_change = on_change
        self.requests = OpenRequests()
        """What has been submitted, and how busy the router is."""
        self._outbox: deque[pb.GatewayToRouter] = deque()
        self._has_mail = asyncio.Event()
        self._keep_alive: asyncio.TimerHandle | None = None
        self.is_open = False
        self._task = asyncio.create_task(self._run(), name=f"router-link {router.address}")

    def submit(self, submit: pb.Submit, sink: NewsSink) -> None:
        """Sends a request; its news go to `sink` until it finishes, is cancelled or the stream ends."""
        self.requests.add(submit, sink)
        self._send(pb.GatewayToRouter(submit=submit))
        if self._keep_alive is None:
            self._arm_keep_alive()

    def cancel(self, sink: NewsSink) -> None:
        """Tells the router to free a request; no more news come."""
        if self.requests.remove(sink):
            cancel = pb.Cancel(request_id=sink.request_id, attempt=sink.attempt)
            self._send(pb.GatewayToRouter(cancel=cancel))

    async def close(self) -> None:
        """Ends the stream; requests that are still open lose this router."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _send(self, message: pb.GatewayToRouter) -> None:
        self._outbox.append(message)
        self._has_mail.set()

    def _arm_keep_alive(self) -> None:
        self._keep_alive = asyncio.get_running_loop().call_later(self._keep_alive_s, self._on_keep_alive)

    def _on_keep_alive(self) -> None:
        self._keep_alive = None
        if self.requests:  # with nothing submitted there is no lease to renew, and an idle gateway sleeps
            self._send(pb.GatewayToRouter(keep_alive=pb.KeepAlive()))
            self._arm_keep_alive()

    async def _run(self) -> None:
        retry_s = _MIN_RETRY_S
        while True:
            heard = False
            try:
                # A channel for each try: certificates may have been changed.
                async with self._trust.channel(self.router.address, _CHANNEL_OPTIONS) as channel:
                    async with asyncio.timeout(_CONNECT_S):
                        await channel.channel_ready()
                    heard = await self._session(rpc.RouterStreamStub(channel))
            except (TimeoutError, TlsError) as error:
                logger.warning("no connection to router %s: %r", self.router.address, error)
            finally:
                self._lose()
            retry_s = _MIN_RETRY_S if heard else min(2 * retry_s, _MAX_RETRY_S)
            await asyncio.sleep(retry_s)

    async def _session(self, stub: rpc.RouterStreamStub) -> bool:
        """One session until its end; whether the router has said anything in it."""
        call = stub.Session(metadata=self._trust.metadata(SESSION, self.router.address))
        self._outbox.clear()
        hello = pb.GatewayHello(gateway_incarnation=self._gateway_incarnation)
        self._send(pb.GatewayToRouter(hello=hello))
        writer = asyncio.create_task(self._write(call))
        heard = False
        try:
            self.is_open = True
            self._on_change()
            while (message := await call.read()) is not grpc.aio.EOF:
                heard = True
                self.requests.receive(message)
        except grpc.aio.AioRpcError as error:
            logger.warning("the stream to router %s ended: %s", self.router.address, error.details())
        finally:
            self.is_open = False
            writer.cancel()
            call.cancel()
        return heard

    async def _write(self, call: grpc.aio.StreamStreamCall[pb.GatewayToRouter, pb.RouterToGateway]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader sees it too
            while True:
                await self._has_mail.wait()
                while self._outbox:
                    await call.write(self._outbox.popleft())
                self._has_mail.clear()

    def _lose(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = None
        self.requests.lose()
        self._on_change()
