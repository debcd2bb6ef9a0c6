"""What a gateway knows of its requests: counts and times for metrics, and a record of each.

Everything is counted in plain numbers; `tell` passes them on once a second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Literal, Protocol, get_args

from expertmesh.actors.gateway.access.gate import Caller
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.requests import GenerationRequest, Prompt, RawRequest
from expertmesh.cluster.metrics import catalog
from expertmesh.cluster.metrics.sink import MetricSink
from expertmesh.engine.tally import Tally

Face = Literal["http", "grpc"]
Outcome = Literal["completed", "cancelled", "refused", "failed"]


class Span(Protocol):
    """A request's span in a trace (`actors.tracing.requests`)."""

    traceparent: str
    """What routers are told, to be part of it."""
    trace_id: str

    def event(self, name: str, **attributes: str | int) -> None:
        """Something has happened just now."""

    def end(self, record: RequestRecord) -> None:
        """The request is over."""


class Spans(Protocol):
    """Makes spans."""

    def begin(self, face: str, traceparent: str) -> Span | None:
        """The span of a request that has just come; None when it is not traced."""


class RequestRecord:
    """One request from its arrival to its end. In one event loop.

    Args:
        telemetry: of the gateway.
        face: where it came in.
        caller: who it is from.
    """

    def __init__(self, telemetry: GatewayTelemetry, face: Face, caller: Caller) -> None:
        self.face: Face = face
        self.caller = caller
        self.request_id = caller.request_id
        self.n_prompt_tokens = 0
        self.n_output_tokens = 0
        self.n_moves = 0
        """Times that a completion of it went on at another router."""
        self.weights = 0
        """The newest version of the weights that computed some of it."""
        self.first_token_s: float | None = None
        """From its arrival to its first token."""
        self.seconds = 0.0
        """From its arrival to its end."""
        self.outcome: Outcome | None = None
        self.reason = ""
        """The kind of error that ended it."""
        self.placed = False
        """Whether a router has ever had some of it."""
        self.prompts: tuple[Prompt, ...] | None = None
        """Only where the deployment asks for them in its log."""
        self.error = ""
        self._telemetry = telemetry
        self._begun_s = time.monotonic()
        self._admitted = False
        self._span = telemetry.spans.begin(face, caller.traceparent) if telemetry.spans else None

    @property
    def traceparent(self) -> str:
        """What routers are told, to be part of its trace; empty when it is not traced."""
        return self._span.traceparent if self._span else ""

    @property
    def trace_id(self) -> str:
        """Empty when it is not traced."""
        return self._span.trace_id if self._span else ""

    def named(self, raw: RawRequest) -> RawRequest:
        """The request with its caller, its record, and the name in its headers if it has no other."""
        self.request_id = raw.request_id or self.request_id
        if self._telemetry.keeps_prompts:
            self.prompts = raw.prompts
        return replace(raw, caller=self.caller, record=self, request_id=self.request_id)

    def admit(self, request: GenerationRequest) -> None:
        """It is taken into the queue."""
        self._admitted = True
        self.request_id = request.request_id
        self.n_prompt_tokens = request.n_prompt_tokens
        self._telemetry.n_prompt_tokens += request.n_prompt_tokens

    def clock(self) -> TokenClock:
        """Takes the times of one completion."""
        return TokenClock(self, self._telemetry)

    def first_token(self, now_s: float) -> None:
        """A token of it has arrived, perhaps the first."""
        if self.first_token_s is None:
            self.first_token_s = now_s - self._begun_s
            self.note("first token")
            self._telemetry.first_token_s.add(self.first_token_s)

    def note(self, name: str, **attributes: str | int) -> None:
        """Something has happened just now, for its trace."""
        if self._span is not None:
            self._span.event(name, **attributes)

    def end(self, error: BaseException | None = None) -> None:
        """It is over, with an error or in peace; a second call changes nothing."""
        if self.outcome is not None:
            return
        self.seconds = time.monotonic() - self._begun_s
        if error is None:
            self.outcome = "completed"
        elif isinstance(error, GatewayError):
            self.outcome = "failed" if self._admitted else "refused"
            self.reason, self.error = error.kind.value, error.message
        elif isinstance(error, Exception):
            self.outcome, self.reason = "failed", "internal"
            self.error = f"{type(error).__name__}: {error}"
        else:  # asyncio.CancelledError, GeneratorExit: nobody waits for it any more
            self.outcome = "cancelled"
        if self._span is not None:
            self._span.end(self)
        self._telemetry.ended(self)


class TokenClock:
    """Times of one completion's tokens."""

    __slots__ = ("_last_s", "_record", "_telemetry")

    def __init__(self, record: RequestRecord, telemetry: GatewayTelemetry) -> None:
        self._record = record
        self._telemetry = telemetry
        self._last_s = 0.0

    def tokens(self, n: int) -> None:
        """So many tokens have arrived together."""
        now_s = time.monotonic()
        if self._last_s:
            self._telemetry.gap_s.add(now_s - self._last_s)
        else:
            self._record.first_token(now_s)
        self._last_s = now_s
        self._record.n_output_tokens += n
        self._telemetry.n_output_tokens += n

    def placed(self, attempt: int, weights: int) -> None:
        """A router has it now, for the first time when `attempt` is 0."""
        self._record.placed = True
        self._record.weights = max(self._record.weights, weights)
        self._record.note("placed", attempt=attempt)
        if attempt > 0:
            self._record.n_moves += 1
            self._telemetry.n_moves += 1


@contextmanager
def refusing(record: RequestRecord | None) -> Iterator[None]:
    """What is raised within ends the request, if it is recorded."""
    try:
        yield
    except BaseException as error:
        if record is not None:
            record.end(error)
        raise


@contextmanager
def ending(record: RequestRecord | None) -> Iterator[None]:
    """The request ends with the block, if it is recorded."""
    with refusing(record):
        yield
    if record is not None:
        record.end()


class GatewayTelemetry:
    """The figures of one gateway.

    Args:
        on_end: told of every request when it has ended.
        spans: makes a span of each that is traced.
        keeps_prompts: whether records hold what was asked.
    """

    def __init__(
        self,
        on_end: Callable[[RequestRecord], None] = lambda record: None,
        spans: Spans | None = None,
        keeps_prompts: bool = False,
    ) -> None:
        self.spans = spans
        self.keeps_prompts = keeps_prompts
        self.n_prompt_tokens = 0
        self.n_output_tokens = 0
        self.n_moves = 0
        self.first_token_s = Tally(catalog.TIME_TO_FIRST_TOKEN.bounds)
        self.gap_s = Tally(catalog.TOKEN_GAP.bounds)
        self._request_s = Tally(catalog.REQUEST_SECONDS.bounds)
        self._ended: Counter[tuple[Face, Outcome]] = Counter()
        for face, outcome in product(get_args(Face), get_args(Outcome)):
            self._ended[face, outcome] = 0
        reasons = [kind.value for kind in ErrorKind]
        self._refused: Counter[str] = Counter(dict.fromkeys(reasons, 0))
        self._failed: Counter[str] = Counter(dict.fromkeys(reasons, 0))
        self._on_end = on_end

    def begin(self, face: Face, caller: Caller) -> RequestRecord:
        """A request for tokens has come."""
        return RequestRecord(self, face, caller)

    def not_admitted(self, error: GatewayError) -> None:
        """A call of any kind was refused at the gate."""
        self._refused[error.kind.value] += 1

    def ended(self, record: RequestRecord) -> None:
        """Counts a request that is over."""
        assert record.outcome is not None
        self._ended[record.face, record.outcome] += 1
        match record.outcome:
            case "completed":
                self._request_s.add(record.seconds)
            case "refused":
                self._refused[record.reason] += 1
            case "failed":
                self._failed[record.reason] += 1
        self._on_end(record)

    def tell(self, sink: MetricSink, n_open: int, n_waiting: int) -> None:
        """Passes everything on."""
        for (face, outcome), n in self._ended.items():
            sink.total(catalog.REQUESTS, n, face=face, outcome=outcome)
        for reason, n in self._refused.items():
            sink.total(catalog.REFUSALS, n, reason=reason)
        for reason, n in self._failed.items():
            sink.total(catalog.FAILURES, n, reason=reason)
        sink.set(catalog.OPEN_REQUESTS, n_open)
        sink.set(catalog.WAITING_REQUESTS, n_waiting)
        sink.total(catalog.PROMPT_TOKENS, self.n_prompt_tokens)
        sink.total(catalog.OUTPUT_TOKENS, self.n_output_tokens)
        sink.total(catalog.RESUMED, self.n_moves)
        sink.observe_counts(catalog.TIME_TO_FIRST_TOKEN, self.first_token_s.take())
        sink.observe_counts(catalog.TOKEN_GAP, self.gap_s.take())
        sink.observe_counts(catalog.REQUEST_SECONDS, self._request_s.take())
