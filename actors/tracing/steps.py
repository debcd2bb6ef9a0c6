"""A request's way through its router as spans: the queue, prefill chunks, and decode steps by the dozen."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context

from expertmesh.actors.tracing.context import parent_of
from expertmesh.engine.batch import StepBatch
from expertmesh.engine.request import RequestKey


@dataclass(slots=True)
class _Part:
    """Steps that become one span."""

    name: str
    begun_ns: int
    ended_ns: int
    n_steps: int
    n_tokens: int


@dataclass(slots=True)
class _Open:
    """A traced request that the router holds."""

    span: Span
    begun_ns: int
    parts: list[_Part] = field(default_factory=list)


class StepTraces:
    """Traces the requests of one router. `step` is called on the engine thread, the rest on the event loop.

    Spans are made when a request ends, from times noted meanwhile: a step costs a look into a dictionary
    for each of its sequences while anything is traced, and nothing otherwise.

    Args:
        tracer: makes the spans.
        steps_per_span: decode steps of a request that one span covers.
    """

    def __init__(self, tracer: Tracer, steps_per_span: int) -> None:
        self._tracer = tracer
        self._steps_per_span = steps_per_span
        self._open: dict[RequestKey, _Open] = {}

    def begin(self, key: RequestKey, traceparent: str, n_tokens: int) -> None:
        """A request has come that is part of a trace.

        Args:
            key: of the request.
            traceparent: the gateway's span.
            n_tokens: prompt and output so far.
        """
        begun_ns = time.time_ns()
        span = self._tracer.start_span("route", parent_of(traceparent), start_time=begun_ns)
        span.set_attributes(
            {
                "expertmesh.request": key.request_id,
                "expertmesh.attempt": key.attempt,
                "expertmesh.tokens.given": n_tokens,
            }
        )
        if span.is_recording():
            self._open[key] = _Open(span, begun_ns)

    def step(self, batch: StepBatch, step_ms: float) -> None:
        """A step has been committed."""
        if not self._open:
            return
        ended_ns = time.time_ns()
        begun_ns = ended_ns - int(step_ms * 1e6)
        for sequence in batch.sequences:
            request = self._open.get(sequence.key)
            if request is None:
                continue
            decodes = sequence.n_known == 1 and sequence.n_context > 0
            last = request.parts[-1] if request.parts else None
            if decodes and last and last.name == "decode" and last.n_steps < self._steps_per_span:
                last.ended_ns = ended_ns
                last.n_steps += 1
                last.n_tokens += sequence.n_tokens
            else:
                name = "decode" if decodes else "prefill"
                request.parts.append(_Part(name, begun_ns, ended_ns, 1, sequence.n_tokens))

    def end(self, key: RequestKey, reason: str, error: str = "") -> None:
        """A request is over."""
        request = self._open.pop(key, None)
        if request is None:
            return
        parent = set_span_in_context(request.span)
        if request.parts:
            waited = _Part("queue", request.begun_ns, request.parts[0].begun_ns, 0, 0)
            for part in (waited, *request.parts):
                span = self._tracer.start_span(part.name, parent, start_time=part.begun_ns)
                if part.n_steps:
                    span.set_attributes(
                        {"expertmesh.steps": part.n_steps, "expertmesh.tokens": part.n_tokens}
                    )
                span.end(max(part.begun_ns, part.ended_ns))
        request.span.set_attribute("expertmesh.finish_reason", reason)
        if error:
            request.span.set_status(Status(StatusCode.ERROR, error))
        request.span.end()
