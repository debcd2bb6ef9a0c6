"""One look a second at the cluster for all pages that are open; none while none is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from expertmesh.actors.gateway.core import GatewayCore
from expertmesh.actors.gateway.feed.pieces import (
    Piece,
    events_piece,
    figures_piece,
    line,
    load_piece,
    placement_piece,
    steadied,
    topology_piece,
)
from expertmesh.actors.gateway.feed.stream_watch import StreamWatch
from expertmesh.proto.v1 import internal_pb2 as pb

logger = logging.getLogger(__name__)

N_HISTORY = 300
"""Seconds of figures that a picture begins with."""
N_RATE_SAMPLES = 4
"""Looks over which the routers' speed is taken: both they and the looks come once a second, out of step."""
MOST_WAITING = 64
"""Pieces that may wait for a slow reader before it gets a new picture instead."""


@dataclass(frozen=True, slots=True)
class FeedTimes:
    """How often, and for how long."""

    interval_s: float = 1.0
    """Between two questions to the coordinator, and between two pieces of figures."""
    most_s: float = 30.0
    """A reader is sent away after this and comes back: a replica that leaves waits for its calls."""
    linger_s: float = 10.0
    """Looking goes on for this long without a reader: a page that is reloaded keeps its curves."""


class Feed:
    """Asks for the cluster's state while somebody reads, and tells all readers what has changed.

    Args:
        core: whose streams are watched; it is told of the coordinator's pushes.
        fresh_topology: asks the coordinator.
        about: what a picture tells of the model and the deployment.
        times: how often, and for how long.
    """

    def __init__(
        self,
        core: GatewayCore,
        fresh_topology: Callable[[], Awaitable[pb.TopologyUpdate]],
        about: Piece,
        times: FeedTimes | None = None,
    ) -> None:
        self._core = core
        self._fresh_topology = fresh_topology
        self._about = about
        self._times = times or FeedTimes()
        self._readers: set[_Reader] = set()
        self._looking: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._told: dict[str, Piece] = {}
        """The last piece of every kind."""
        self._history: deque[Piece] = deque(maxlen=N_HISTORY)
        self._samples: deque[tuple[float, dict[str, int]]] = deque(maxlen=N_RATE_SAMPLES)
        """When the coordinator was asked, and the tokens that every router had computed."""

    @property
    def looking(self) -> bool:
        """Whether the coordinator is being asked."""
        return self._looking is not None

    async def read(self) -> AsyncGenerator[bytes, None]:
        """JSON lines: a picture, then pieces as they come, for `most_s` or until the gateway drains."""
        reader = _Reader()
        self._readers.add(reader)
        self._begin()
        end_s = asyncio.get_running_loop().time() + self._times.most_s
        try:
            while not (why := self._why_to_end(reader, end_s)):
                if reader.needs_picture and self._told:
                    yield self._picture(reader)
                elif text := await reader.next(end_s):
                    yield text
            yield line("end", {"reason": why})
        finally:
            self._readers.discard(reader)
            if not self._readers and self._looking is not None:
                self._linger = asyncio.get_running_loop().call_later(self._times.linger_s, self._stop)

    def _why_to_end(self, reader: _Reader, end_s: float) -> str:
        if self._core.draining:
            return "draining"
        if self._looking is None:
            return "failed"
        return "renew" if asyncio.get_running_loop().time() >= end_s else ""

    # ------------------------------------------------------------------ looking

    def _begin(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._looking is None:
            self._core.stream_watch = StreamWatch()
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            logger.error("the feed of the live page failed: %r", error, exc_info=error)
            self._stop()
            self._rouse()

    def _stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self._linger = self._core.stream_watch = None
        self._told = {}
        self._history.clear()
        self._samples.clear()

    async def _look(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask())
            tasks.create_task(self._listen())
            tasks.create_task(self._measure())

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked_s = loop.time()
            self._tell(await self._fresh_topology())
            await asyncio.sleep(max(0.0, asked_s + self._times.interval_s - loop.time()))

    async def _listen(self) -> None:
        """The coordinator's pushes come before the next question."""
        while True:
            topology = self._core.topology
            await self._core.status_changed()
            if self._core.topology is not topology and self._told:
                self._tell(self._core.topology)
            if self._core.draining:
                self._rouse()

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(self._times.interval_s)
            watch = self._core.stream_watch
            if watch is None:
                return
            piece = figures_piece(
                time.time(), watch.take(), self._core.n_outstanding, self._router_tokens_per_s()
            )
            self._history.append(piece)
            self._send("figures", piece)

    def _rouse(self) -> None:
        for reader in self._readers:
            reader.rouse()

    # ------------------------------------------------------------------ telling

    def _tell(self, update: pb.TopologyUpdate) -> None:
        if not update.stale:
            routers = [
                (member.incarnation, tokens)
                for member, tokens in zip(update.generation.members, update.tokens, strict=False)
                if member.role == pb.ROLE_ROUTER
            ]
            self._samples.append((asyncio.get_running_loop().time(), dict(routers)))
        self._tell_changed("topology", topology_piece(update))
        if update.generation.number != self._told.get("placement", {}).get("generation"):
            self._tell_changed("placement", placement_piece(update))
        events = steadied(events_piece(update), self._told.get("events"))
        self._tell_changed("events", events)
        self._tell_changed("load", load_piece(update))

    def _tell_changed(self, kind: str, piece: Piece) -> None:
        if piece != self._told.get(kind):
            self._told[kind] = piece
            self._send(kind, piece)

    def _send(self, kind: str, piece: Piece) -> None:
        if self._readers:
            text = line(kind, piece)
            for reader in self._readers:
                reader.put(text)

    def _picture(self, reader: _Reader) -> bytes:
        reader.restart()
        return line("picture", {**self._about, **self._told, "history": list(self._history)})

    def _router_tokens_per_s(self) -> dict[str, float]:
        """By incarnation; nothing before the second look."""
        if len(self._samples) < 2:
            return {}
        (first_s, before), (last_s, now) = self._samples[0], self._samples[-1]
        seconds = max(last_s - first_s, 1e-3)
        return {name: max(0, n - before.get(name, n)) / seconds for name, n in now.items()}


class _Reader:
    """What waits to be sent to one page."""

    def __init__(self) -> None:
        self.needs_picture = True
        self._waiting: deque[bytes] = deque()
        self._roused = asyncio.Event()

    def put(self, text: bytes) -> None:
        """Queues a piece. A picture that is due has it already."""
        if len(self._waiting) >= MOST_WAITING:
            self.needs_picture = True
        if not self.needs_picture:
            self._waiting.append(text)
        self.rouse()

    def restart(self) -> None:
        """A picture is sent: what waits is part of it."""
        self.needs_picture = False
        self._waiting.clear()

    def rouse(self) -> None:
        """There is something to do."""
        self._roused.set()

    async def next(self, end_s: float) -> bytes:
        """The next piece; empty when there is something else to do, or at `end_s` on the loop's clock."""
        if not self._waiting:
            self._roused.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(end_s):
                    await self._roused.wait()
        return self._waiting.popleft() if self._waiting and not self.needs_picture else b""
