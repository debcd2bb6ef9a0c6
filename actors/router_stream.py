"""The router's end of the gateway streams: submissions in, one message a step out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from expertmesh.engine.errors import EngineStoppedError
from expertmesh.engine.request import (
    LogprobRow,
    Request,
    RequestKey,
    RouterLoad,
    SamplingParams,
    SequenceNews,
)
from expertmesh.proto.v1 import internal_pb2 as pb
from expertmesh.proto.v1 import internal_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

_IDLE_LOAD_S = 0.2
"""Gateways without requests here hear this often how busy the router is, and at once when it falls idle."""


class Engine(Protocol):
    """What a stream needs of the engine."""

    def submit(self, request: Request) -> None:
        """Queues a request."""
        ...

    def cancel(self, key: RequestKey) -> None:
        """Ends a request."""
        ...


class RequestTraces(Protocol):
    """Follows requests that are part of a trace (`actors.tracing.steps.StepTraces`)."""

    def begin(self, key: RequestKey, traceparent: str, n_tokens: int) -> None:
        """A request has come."""

    def end(self, key: RequestKey, reason: str, error: str = "") -> None:
        """A request is over, or known to nobody."""


@dataclass(slots=True, eq=False)
class _Session:
    """One gateway's stream and the requests that came through it."""

    gateway: str = "?"
    outbox: asyncio.Queue[pb.RouterToGateway] = field(default_factory=asyncio.Queue)
    open: set[RequestKey] = field(default_factory=set)
    heard_s: float = field(default_factory=time.monotonic)
    told_s: float = 0.0
    """When the gateway was last told the router's load."""


class RouterStreamServicer(pb_grpc.RouterStreamServicer):
    """Serves `RouterStream.Session` in the replica's event loop.

    Args:
        lease_s: the requests of a gateway that has been silent for this long are ended.
        traces: follows those that are part of a trace.
    """

    def __init__(self, lease_s: float, traces: RequestTraces | None = None) -> None:
        self._lease_s = lease_s
        self._traces = traces
        self._loop = asyncio.get_running_loop()
        self._owners: dict[RequestKey, _Session] = {}
        self._sessions: set[_Session] = set()
        self._leaving = False
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """The engine that runs what arrives; until then no stream is accepted."""
        self._engine = engine

    def leave(self) -> None:
        """Tells every gateway to choose other routers from now on; what runs here goes on."""
        self._leaving = True
        for session in self._sessions:
            session.outbox.put_nowait(pb.RouterToGateway(leaving=True))

    def sink(self, news: Sequence[SequenceNews], load: RouterLoad) -> None:
        """Takes a step's news on the engine thread."""
        self._loop.call_soon_threadsafe(self._deliver, news, load)

    async def Session(  # noqa: N802 - the name in the protocol
        self, messages: AsyncIterator[pb.GatewayToRouter], context: Any
    ) -> AsyncIterator[pb.RouterToGateway]:
        """One gateway's stream for its whole life; its end ends its requests."""
        session = _Session()
        if self._leaving:
            session.outbox.put_nowait(pb.RouterToGateway(leaving=True))
        self._sessions.add(session)
        reader = asyncio.create_task(self._read(session, messages))
        lease = asyncio.create_task(self._watch_lease(session))
        getter: asyncio.Task[pb.RouterToGateway] | None = None
        try:
            while not (reader.done() or lease.done()):
                getter = asyncio.create_task(session.outbox.get())
                await asyncio.wait({getter, reader, lease}, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    yield getter.result()
            if lease.done():
                # Heard again, the gateway finds its stream broken, and submits its requests anew.
                await context.abort(grpc.StatusCode.ABORTED, lease.result())
            reader.result()
        except EngineStoppedError as error:
            # Gateways take the end of a stream for the loss of its router, and resubmit elsewhere.
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            for task in (reader, lease, getter):
                if task is not None:
                    task.cancel()
            self._sessions.discard(session)
            self._end_requests(session, f"the stream of gateway {session.gateway} ended")

    async def _read(self, session: _Session, messages: AsyncIterator[pb.GatewayToRouter]) -> None:
        async for message in messages:
            session.heard_s = time.monotonic()
            match message.WhichOneof("message"):
                case "hello":
                    session.gateway = message.hello.gateway_incarnation
                case "submit":
                    self._submit(session, message.submit)
                case "cancel":
                    key = RequestKey(message.cancel.request_id, message.cancel.attempt)
                    if key in session.open and self._engine is not None:
                        self._engine.cancel(key)
                        if self._traces is not None:
                            self._traces.end(key, "cancelled")
                case _:
                    pass  # keep_alive: being heard is all that it is for

    def _submit(self, session: _Session, submit: pb.Submit) -> None:
        if self._engine is None:
            raise EngineStoppedError("this router is still loading")
        request = request_from_proto(submit)
        session.open.add(request.key)
        self._owners[request.key] = session
        if self._traces is not None and submit.traceparent:
            n_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
            self._traces.begin(request.key, submit.traceparent, n_tokens)
        self._engine.submit(request)

    def _deliver(self, news: Sequence[SequenceNews], load: RouterLoad) -> None:
        """Groups a step's news by gateway: one message each."""
        messages: dict[_Session, list[pb.SequenceNews]] = defaultdict(list)
        for item in news:
            if self._traces is not None and item.finish_reason is not None:
                self._traces.end(item.key, item.finish_reason, item.error)
            session = self._owners.get(item.key)
            if session is None:
                continue  # its gateway is gone
            if item.finish_reason is not None:
                del self._owners[item.key]
                session.open.discard(item.key)
            messages[session].append(news_to_proto(item))
        load_message = load_to_proto(load)
        idle = not (load.queued_requests or load.running_requests)
        now_s = time.monotonic()
        for session in self._sessions:
            items = messages.get(session)
            wants_load = session.outbox.empty() and (idle or now_s - session.told_s >= _IDLE_LOAD_S)
            if items or wants_load:
                session.told_s = now_s
                session.outbox.put_nowait(pb.RouterToGateway(news=items, load=load_message))

    async def _watch_lease(self, session: _Session) -> str:
        """Ends when a gateway with open requests has been silent for too long; says so."""
        while True:
            await asyncio.sleep(self._lease_s / 2)
            silent_s = time.monotonic() - session.heard_s
            if session.open and silent_s > self._lease_s:
                why = f"gateway {session.gateway} was silent for {silent_s:.1f} s"
                self._end_requests(session, why)  # the stream itself may hang in a write
                return why

    def _end_requests(self, session: _Session, why: str) -> None:
        if session.open:
            logger.warning("ending %d requests: %s", len(session.open), why)
        for key in session.open:
            self._owners.pop(key, None)
            if self._traces is not None:
                self._traces.end(key, "cancelled", why)
            if self._engine is not None:
                self._engine.cancel(key)
        session.open.clear()


def request_from_proto(submit: pb.Submit) -> Request:
    """A submission as the engine takes it."""
    sampling = submit.sampling
    return Request(
        key=RequestKey(submit.request_id, submit.attempt),
        prompt_token_ids=tuple(submit.prompt_token_ids),
        output_token_ids=tuple(submit.output_token_ids),
        weights=submit.weights,
        params=SamplingParams(
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=sampling.seed,
            stop_token_ids=frozenset(sampling.stop_token_ids),
            logprobs=None if sampling.logprobs < 0 else sampling.logprobs,
            prompt_logprobs=None if sampling.prompt_logprobs < 0 else sampling.prompt_logprobs,
        ),
    )


def news_to_proto(news: SequenceNews) -> pb.SequenceNews:
    """What a step brought for one request, as it travels."""
    return pb.SequenceNews(
        request_id=news.key.request_id,
        attempt=news.key.attempt,
        index=news.index,
        token_ids=news.token_ids,
        logprobs=[_row(row) for row in news.logprobs],
        prompt_index=news.prompt_index,
        prompt_logprobs=[_row(row) for row in news.prompt_logprobs],
        finish_reason=news.finish_reason or "",
        stop_token_id=-1 if news.stop_token_id is None else news.stop_token_id,
        error=news.error,
        cause=news.cause,
        draft_tokens=news.draft_tokens,
        accepted_tokens=news.accepted_tokens,
    )


def load_to_proto(load: RouterLoad) -> pb.RouterLoad:
    """How busy a router is, as it travels."""
    return pb.RouterLoad(
        queued_requests=load.queued_requests,
        running_requests=load.running_requests,
        queued_tokens=load.queued_tokens,
        running_tokens=load.running_tokens,
    )


def _row(row: LogprobRow) -> pb.LogprobRow:
    return pb.LogprobRow(token_ids=row.token_ids, logprobs=row.logprobs, rank=row.rank)
