"""The life of a request: admitted, placed on a router, placed again when that one is lost, ended.

Nothing here knows Ray, HTTP or the public gRPC: both faces call `GatewayCore.generate`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from expertmesh.actors.gateway.access.meter import Meter
from expertmesh.actors.gateway.completion import Completion
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.feed.stream_watch import StreamWatch
from expertmesh.actors.gateway.requests import Completed, Delta, GenerationRequest, ModelCard, RawRequest
from expertmesh.actors.gateway.router_link import RouterAddress, RouterLink
from expertmesh.actors.gateway.routers import LinkOpener, RouterPool
from expertmesh.actors.gateway.run import RequestRun
from expertmesh.actors.gateway.telemetry import GatewayTelemetry, ending, refusing
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.actors.gateway.validation import Validator
from expertmesh.configs.schema import LimitsConfig
from expertmesh.proto.v1 import internal_pb2 as pb


class GatewayCore:
    """Everything a gateway does between its faces and the routers. Lives in one event loop.

    Args:
        card: the served model.
        limits: the deployment's bounds.
        lease_s: routers drop the requests of a gateway that has been silent for this long.
        tokenizer: None when the checkpoint has none.
        incarnation: names this gateway to the routers; drawn when empty.
        on_outstanding: told the number of open completions whenever it or the weights of one change.
        stream_chunks_per_s: deltas a second that all open streams share (`GatewayConfig`).
        open_link: opens the stream to a router.
        meter: holds keys to their limits.
        telemetry: records requests.
    """

    def __init__(
        self,
        card: ModelCard,
        limits: LimitsConfig,
        lease_s: float,
        tokenizer: TextTokenizer | None = None,
        incarnation: str = "",
        on_outstanding: Callable[[int], None] | None = None,
        stream_chunks_per_s: float = math.inf,
        open_link: LinkOpener = RouterLink,
        meter: Meter | None = None,
        telemetry: GatewayTelemetry | None = None,
    ) -> None:
        self.card = card
        self.meter = meter or Meter()
        self.telemetry = telemetry or GatewayTelemetry()
        self.limits = limits
        self.tokenizer = tokenizer
        self.validator = Validator(card, limits, tokenizer)
        self.topology = pb.TopologyUpdate(state="waiting", reason="no word from the coordinator yet")
        self.n_outstanding = 0
        """Completions admitted and not ended."""
        self.stream_watch: StreamWatch | None = None
        self._incarnation = incarnation or secrets.token_hex(8)
        self._routers = RouterPool(self._incarnation, lease_s, self._on_routers, open_link)
        self._waiting: dict[str, Completion] = {}
        self._draining = False
        self._n_admitted = 0
        self._on_outstanding = on_outstanding
        self._stream_chunks_per_s = stream_chunks_per_s
        self._status_changed = asyncio.Event()
        self._open_by_weights: Counter[int] = Counter()

    def set_limits(self, limits: LimitsConfig) -> None:
        """Holds new requests to other bounds; those that are admitted go on."""
        self.limits = limits
        self.validator = Validator(self.card, limits, self.tokenizer)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining or self.topology.draining

    @property
    def healthy(self) -> bool:
        """Whether a new request can be generated now: a live generation, and a router that is reached."""
        return self.topology.state == "running" and self.n_open_routers > 0 and not self.draining

    @property
    def n_open_routers(self) -> int:
        """Routers that are reached."""
        return self._routers.n_open

    @property
    def n_waiting(self) -> int:
        """Completions that wait for a router."""
        return len(self._waiting)

    @property
    def newest_weights(self) -> int:
        """The version of the weights that new requests begin with; 0 before any is known."""
        return max((w.version for w in self.topology.generation.weights), default=0)

    @property
    def oldest_weights(self) -> int:
        """The oldest version that an open completion began with; 0 when there is none."""
        return min((version for version, n in self._open_by_weights.items() if n), default=0)

    async def status_changed(self) -> None:
        """Waits until `healthy` or `n_open_routers` may have changed."""
        await self._status_changed.wait()

    def on_topology(self, update: pb.TopologyUpdate) -> None:
        """Takes the coordinator's word on who serves."""
        newest_before = self.newest_weights
        self.topology = update
        self.meter.set_gateways(update.gateways)
        if self.newest_weights != newest_before:
            self._tell_load()
        # While a generation forms, the last one's routers keep their requests and run on in the next.
        routers = [m for m in update.generation.members if m.role == pb.ROLE_ROUTER]
        if routers or update.state == "running":
            self._routers.update(RouterAddress(m.incarnation, m.stream_address) for m in routers)
        self._on_routers()

    def drain(self) -> None:
        """Refuses new requests from now on; running ones go on."""
        self._draining = True
        self._tell_status()

    async def close(self) -> None:
        """Ends the streams to the routers; requests still open wait for their deadline in vain."""
        self._draining = True
        await self._routers.close()

    @property
    def stream_interval_s(self) -> float:
        """The least time between two deltas of one completion, first and last ones apart."""
        return self.n_outstanding / self._stream_chunks_per_s

    async def generate(
        self, request: GenerationRequest, whole: bool = False
    ) -> AsyncGenerator[list[Delta], None]:
        """Runs a request; yields what is new of its completions.

        With `whole`, a completion's delta comes when it has ended (or has to be searched for stop strings).
        Closing the iterator early, or cancelling the task that waits on it, frees the request.

        Raises:
            GatewayError: RATE_LIMITED, QUEUE_FULL or UNAVAILABLE at the start; DEADLINE, UNAVAILABLE or
                INTERNAL later.
        """
        record = request.record
        with ending(record), self.meter.spend(request.caller, request.n_prompt_tokens) as spending:
            self._admit(request.n_completions)
            if record is not None:
                record.admit(request)
            run = RequestRun(self, request, whole)
            try:
                while not run.ended:
                    if deltas := await run.next():
                        spending.take_tokens(sum(len(delta.token_ids) for delta in deltas))
                        if run.ended and record is not None:
                            record.end()  # Who goes away behind this has had it all.
                        yield deltas
            finally:
                run.close()

    async def complete(self, request: GenerationRequest) -> list[Completed]:
        """Runs a request to its end; the completions by index.

        Raises:
            GatewayError: as `generate`.
        """
        parts: list[list[Delta]] = [[] for _ in range(request.n_completions)]
        async with aclosing(self.generate(request, whole=True)) as stream:
            async for deltas in stream:
                for delta in deltas:
                    parts[delta.index].append(delta)
        return [_join(deltas) for deltas in parts]

    async def validate(self, raw: RawRequest) -> GenerationRequest:
        """Checks a request at the edge (see `Validator`).

        Raises:
            GatewayError: what is wrong with it.
        """
        with refusing(raw.record):
            self._refuse_when_draining()
            self.meter.check(raw.caller)
            return await self.validator.validate(raw)

    def place(self, completion: Completion) -> None:
        """Sends a completion to the least busy router, or lets it wait for one."""
        link = self._routers.choose() if self.topology.state == "running" else None
        if link is None:
            self._waiting[completion.request_id] = completion
        elif self._choose_weights(completion):
            completion.place(link)

    def forget(self, completion: Completion) -> None:
        """A completion is over: it stops waiting and no longer counts."""
        self._waiting.pop(completion.request_id, None)
        if self.stream_watch is not None:
            self.stream_watch.ended(completion.request_id)
        if completion.weights:
            self._open_by_weights[completion.weights] -= 1
        self._count(-1)

    def _choose_weights(self, completion: Completion) -> bool:
        """Has a completion begin with the newest weights or stay with its own; False if these are gone."""
        held = [w.version for w in self.topology.generation.weights]
        if not held or completion.weights in held:
            return True
        if completion.n_tokens:
            message = f"the weights that the answer began with (version {completion.weights}) are gone"
            completion.give_up(GatewayError(ErrorKind.UNAVAILABLE, message))
            return False
        if completion.weights:
            self._open_by_weights[completion.weights] -= 1
        completion.weights = self.newest_weights
        if completion.weights:
            self._open_by_weights[completion.weights] += 1
            self._tell_load()
        return True

    def next_request_id(self) -> str:
        """A name that no other request of any gateway has."""
        self._n_admitted += 1
        return f"{self._incarnation}-{self._n_admitted}"

    def _admit(self, n_completions: int) -> None:
        self._refuse_when_draining()
        most = self.limits.max_queued_requests
        if self.n_outstanding + n_completions > most:
            message = (
                f"the queue is full: {self.n_outstanding} of at most {most} requests are open; try again"
            )
            raise GatewayError(ErrorKind.QUEUE_FULL, message)
        self._count(n_completions)

    def _count(self, change: int) -> None:
        self.n_outstanding += change
        self._tell_load()

    def _tell_load(self) -> None:
        if self._on_outstanding is not None:
            self._on_outstanding(self.n_outstanding)

    def _tell_status(self) -> None:
        self._status_changed.set()
        self._status_changed = asyncio.Event()

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise GatewayError(
                ErrorKind.UNAVAILABLE, "the deployment is shutting down and takes no new requests"
            )

    def _on_routers(self) -> None:
        self._tell_status()
        waiting, self._waiting = self._waiting, {}
        for completion in waiting.values():
            self.place(completion)


def _join(deltas: list[Delta]) -> Completed:
    last = deltas[-1]
    assert last.finish_reason is not None
    return Completed(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=[row for delta in deltas for row in delta.logprobs],
        prompt_logprobs=deltas[0].prompt_logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        weights=last.weights,
        draft_tokens=sum(delta.draft_tokens for delta in deltas),
        accepted_tokens=sum(delta.accepted_tokens for delta in deltas),
    )
