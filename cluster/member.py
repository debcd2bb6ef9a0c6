"""A member's side of its stream to the coordinator: kept up for the whole life of the process.

Everything runs on one asyncio event loop, the one that called `start`. The sending methods may be called
from any thread once it is started. What is not delivered when a stream breaks is dropped: the Hello of
the next stream tells where the member stands, and the coordinator starts from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

import grpc
import grpc.aio

from expertmesh.cluster.control import ControlClient
from expertmesh.cluster.load import Load
from expertmesh.cluster.probe import ProbeServer, reach
from expertmesh.cluster.track import AbandonNews, GenerationTrack
from expertmesh.cluster.trust.trust import JOIN, UNGUARDED, Trust
from expertmesh.cluster.types import Generation, MemberInfo
from expertmesh.cluster.wire import generation_from_proto, hello_to_proto, load_to_proto
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc

logger = logging.getLogger(__name__)

FIND_S = 60.0
"""For finding the coordinator (it may have to be started)."""
CONNECT_S = 5.0
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 1.0
LOAD_INTERVAL_S = 0.2
"""Load figures are sent at most this often."""
CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A coordinator that is frozen or whose node is lost sends nothing, not even an end of the stream.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # What is really waited for the answer; a minute by default.
    ("grpc.http2.max_pings_without_data", 0),
]

FindCoordinator = Callable[[], Awaitable[str]]
"""Gives the coordinator's HOST:PORT; asked again before every connection."""


class MemberEvents(Protocol):
    """What a member is told. Called on the event loop; must not block."""

    def on_prepare(self, generation: Generation) -> None:
        """Load what is missing and build the process group in the background; then call `prepared`
        (or `prepare_failed`)."""

    def on_live(self, number: int, epoch: int) -> None:
        """Every member has prepared: the generation is live, parked behind epoch 0, or 1 to be entered."""

    def on_switch(self, number: int, successor: int) -> None:
        """Leave the live generation for its successor after the first step whose headers all say so; then
        call `switched`, and `abandoned` once the successor has made a step."""

    def on_abandon(self, number: int, reason: str) -> None:
        """Leave a generation, prepared or not; then call `abandoned`. Called once for a generation."""

    def on_wake(self, number: int, epoch: int) -> None:
        """Enter this epoch of the live generation. Epochs rise."""

    def on_topology(self, update: pb.TopologyUpdate) -> None:
        """Gateways: who serves."""

    def on_excluded(self, reason: str) -> None:
        """This process is out for good and has to end; reason LEFT_AS_ASKED after `leave`."""

    def on_drain(self) -> None:
        """Gateways: stop admitting."""


class MemberClient(ControlClient):
    """Keeps a member's stream to the coordinator, and filters what is late or double out of it.

    Args:
        hello: who this member is.
        find_coordinator: see `FindCoordinator`.
        heartbeat_s: how often it tells that it is alive.
        probe_host: the interface on which others may find out whether they reach this member; empty for
            members that others have nothing to do with.
        trust: how the coordinator knows this process.
    """

    def __init__(
        self,
        hello: MemberInfo,
        find_coordinator: FindCoordinator,
        heartbeat_s: float,
        probe_host: str = "",
        trust: Trust = UNGUARDED,
    ) -> None:
        super().__init__(trust)
        self._member = hello
        self._probe_host = probe_host
        self._probe_server = ProbeServer(hello.incarnation)
        self._probing: set[asyncio.Task[None]] = set()
        self._find_coordinator = find_coordinator
        self._events: MemberEvents | None = None
        self._heartbeat_s = heartbeat_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._outbox: asyncio.Queue[pb.MemberMessage] | None = None
        """None while there is no stream."""
        self._track = GenerationTrack()
        self._generations: dict[int, Generation] = {}
        """Those that it runs and prepares."""
        self._wants_to_leave = False
        self._asked: dict[str, pb.MemberMessage] = {}
        """The last accusation and the last request to be woken."""
        self._out = False
        self._load: Load | None = None
        self._load_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ life

    async def start(self, events: MemberEvents) -> None:
        """Starts to join and to stay joined, in the background of the running event loop."""
        self._events = events
        self._loop = asyncio.get_running_loop()
        if self._probe_host:
            address = await self._probe_server.start(self._probe_host)
            self._member = replace(self._member, probe_address=address)
        self._task = self._loop.create_task(self._stay_joined())

    async def close(self) -> None:
        """Ends the stream, which the coordinator takes for this member's death."""
        self._out = True
        if self._load_timer:
            self._load_timer.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._probe_server.close()

    @property
    def connected(self) -> bool:
        """Whether there is a stream to the coordinator."""
        return self._outbox is not None

    # ------------------------------------------------------------------ to the coordinator, from any thread

    def prepared(self, generation: int) -> None:
        """Weights and process group of a generation are ready here."""
        self._post(pb.MemberMessage(prepared=pb.Prepared(generation=generation)))

    def prepare_failed(self, generation: int, reason: str, unmet: bool = False) -> None:
        """A generation could not be prepared here; `unmet`: because the members did not meet."""
        failed = pb.PrepareFailed(generation=generation, reason=reason, unmet=unmet)
        self._post(pb.MemberMessage(prepare_failed=failed))

    def abandoned(self, generation: int) -> None:
        """This member has left a generation and freed what it had prepared for it."""
        self._call(self._on_abandoned, generation)

    def switched(self, generation: int) -> None:
        """This member has left a generation for its successor, and still holds what belongs to it."""
        self._call(self._track.switched, generation)

    def accuse(self, generation: int, reason: str) -> None:
        """A collective failed here; the reason names whom it is laid on, if anybody."""
        message = pb.MemberMessage(accuse=pb.Accuse(generation=generation, reason=reason))
        self._call(self._ask_until_heard, "accuse", message)

    def wake_request(self, generation: int, epoch: int) -> None:
        """Work has come while parked."""
        message = pb.MemberMessage(wake_request=pb.WakeRequest(generation=generation, epoch=epoch))
        self._call(self._ask_until_heard, "wake_request", message)

    def report_load(self, load: Load) -> None:
        """Replaces this member's load figures; sent within LOAD_INTERVAL_S. Cheap enough for every step."""
        self._call(self._on_load, load)

    def leave(self) -> None:
        """Asks to leave; on_excluded(LEFT_AS_ASKED) tells when the process may end."""
        self._call(self._on_leave)

    # ------------------------------------------------------------------ sending, on the loop

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        if self._loop is None:
            raise RuntimeError("MemberClient.start has not been called")
        # The loop of a process that ends may be gone before its engine thread is.
        if not self._out and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _post(self, message: pb.MemberMessage) -> None:
        self._call(self._enqueue, message)

    def _enqueue(self, message: pb.MemberMessage) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(message)

    def _ask_until_heard(self, kind: str, message: pb.MemberMessage) -> None:
        """Says something that is said again on the next stream, as long as it still matters: a coordinator
        that restarts lets the generation go on."""
        self._asked[kind] = message
        self._enqueue(message)

    def _ask_again(self) -> None:
        track = self._track
        accuse, wake = self._asked.get("accuse"), self._asked.get("wake_request")
        if accuse and accuse.accuse.generation == track.running:
            self._enqueue(accuse)
        if wake and wake.wake_request.generation == track.running and wake.wake_request.epoch > track.epoch:
            self._enqueue(wake)

    def _on_abandoned(self, generation: int) -> None:
        self._track.abandoned(generation)
        self._enqueue(pb.MemberMessage(abandoned=pb.Abandoned(generation=generation)))

    async def _probe(self, probe: pb.Probe) -> None:
        reached = await reach(dict(probe.addresses), probe.timeout_s)
        report = pb.ProbeReport(round=probe.round, reached=sorted(reached))
        self._enqueue(pb.MemberMessage(probe_report=report))

    def _on_leave(self) -> None:
        self._wants_to_leave = True
        self._enqueue(pb.MemberMessage(leaving=pb.Leaving()))

    def _on_load(self, load: Load) -> None:
        self._load = load
        if self._load_timer is None:
            assert self._loop is not None
            self._load_timer = self._loop.call_later(LOAD_INTERVAL_S, self._send_load)

    def _send_load(self) -> None:
        self._load_timer = None
        if self._load is not None:
            self._enqueue(pb.MemberMessage(load=load_to_proto(self._load)))

    # ------------------------------------------------------------------ the stream

    async def _stay_joined(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._out:
            joined = False
            try:
                address = await asyncio.wait_for(self._find_coordinator(), FIND_S)
                joined = await self._join(address)
            except TimeoutError:
                logger.warning("the coordinator was not found within %g s", FIND_S)
            except Exception as error:
                # find_coordinator is the caller's: whatever it raises is a reason to ask again.
                logger.warning("no stream to the coordinator: %r", error)
            if self._out:
                return
            backoff_s = FIRST_BACKOFF_S if joined else min(2 * backoff_s, LAST_BACKOFF_S)
            await asyncio.sleep(backoff_s)

    async def _join(self, address: str) -> bool:
        """Holds one stream until it ends; False when it did not come about."""
        async with self._trust.channel(address, CHANNEL_OPTIONS) as channel:
            metadata = self._trust.metadata(JOIN, address)
            call = internal_pb2_grpc.MembershipStub(channel).Join(metadata=metadata)
            track = self._track
            hello = hello_to_proto(
                self._member,
                track.generation,
                track.seen_generation,
                track.next_generation,
                self._generations.get(track.running),
                track.epoch,
            )
            joined = False
            writer: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(CONNECT_S):
                    await call.write(pb.MemberMessage(hello=hello))
                    await call.wait_for_connection()
                joined = True
                self._address, self._stub = address, internal_pb2_grpc.CoordinatorStub(channel)
                self._outbox = asyncio.Queue()
                if self._wants_to_leave:
                    self._on_leave()
                self._send_load()
                self._ask_again()
                writer = asyncio.create_task(self._write(call, self._outbox))
                while (message := await call.read()) is not grpc.aio.EOF:
                    self._receive(message)
                    if self._out:
                        break
            except TimeoutError:
                logger.warning("the coordinator at %s did not answer within %g s", address, CONNECT_S)
            except grpc.aio.AioRpcError as error:
                logger.warning("the coordinator at %s is gone: %s", address, error.details())
            finally:
                self._outbox = self._stub = None
                if writer:
                    writer.cancel()
                    await asyncio.gather(writer, return_exceptions=True)
                call.cancel()
        return joined

    async def _write(self, call: Any, outbox: asyncio.Queue[pb.MemberMessage]) -> None:
        heartbeat = pb.MemberMessage(heartbeat=pb.Heartbeat())
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    message = await outbox.get()
            except TimeoutError:
                message = heartbeat
            await call.write(message)

    # ------------------------------------------------------------------ receiving

    def _receive(self, message: pb.CoordinatorMessage) -> None:
        assert self._events is not None
        try:
            self._handle(message, self._events)
        except Exception:
            logger.exception("a callback failed for %s", message.WhichOneof("message"))
            if message.WhichOneof("message") == "prepare":
                self.prepare_failed(message.prepare.generation.number, "its callback failed, see its log")

    def _handle(self, message: pb.CoordinatorMessage, events: MemberEvents) -> None:
        match message.WhichOneof("message"):
            case "prepare":
                generation = generation_from_proto(message.prepare.generation)
                if self._track.prepare(generation.number):
                    kept = (generation.number, self._track.running)
                    known = {**self._generations, generation.number: generation}
                    self._generations = {number: known[number] for number in kept if number in known}
                    events.on_prepare(generation)
            case "live":
                live = message.live
                if self._track.go_live(live.generation, live.epoch):
                    events.on_live(live.generation, live.epoch)
            case "switch":
                switch = message.switch
                if self._track.switch(switch.from_generation, switch.to_generation):
                    events.on_switch(switch.from_generation, switch.to_generation)
            case "abandon":
                abandon = message.abandon
                match self._track.abandon(abandon.generation):
                    case AbandonNews.ASKED:
                        events.on_abandon(abandon.generation, abandon.reason)
                    case AbandonNews.ALREADY_OUT:
                        self._on_abandoned(abandon.generation)
                    case AbandonNews.ASKED_BEFORE:
                        pass
            case "wake":
                if self._track.wake(message.wake.generation, message.wake.epoch):
                    events.on_wake(message.wake.generation, message.wake.epoch)
            case "probe":
                task = asyncio.create_task(self._probe(message.probe))
                self._probing.add(task)
                task.add_done_callback(self._probing.discard)
            case "topology":
                events.on_topology(message.topology)
            case "excluded":
                self._out = True
                events.on_excluded(message.excluded.reason)
            case "drain":
                events.on_drain()
