"""The gateway's span of a request: the root of what routers add, or a child of the client's own."""

from __future__ import annotations

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from expertmesh.actors.gateway.telemetry import RequestRecord
from expertmesh.actors.tracing.context import parent_of, traceparent_of


class RequestSpans:
    """Makes a span for each request that is to be traced (`actors.gateway.telemetry.Spans`)."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, face: str, traceparent: str) -> RequestSpan | None:
        """The span of a request that has just come; None when it is not traced."""
        span = self._tracer.start_span("request", parent_of(traceparent), kind=SpanKind.SERVER)
        if not span.is_recording():
            return None
        span.set_attribute("expertmesh.face", face)
        return RequestSpan(span)


class RequestSpan:
    """One request's span."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.traceparent = traceparent_of(span)
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def event(self, name: str, **attributes: str | int) -> None:
        """Something has happened just now."""
        self._span.add_event(name, attributes)

    def end(self, record: RequestRecord) -> None:
        """The request is over."""
        assert record.outcome is not None
        self._span.set_attributes(
            {
                "expertmesh.request_id": record.request_id,
                "expertmesh.outcome": record.outcome,
                "expertmesh.tokens.prompt": record.n_prompt_tokens,
                "expertmesh.tokens.output": record.n_output_tokens,
                "expertmesh.weights": record.weights,
            }
        )
        if record.outcome in ("failed", "refused"):
            self._span.set_attribute("expertmesh.reason", record.reason)
            self._span.set_status(Status(StatusCode.ERROR, record.reason))
        self._span.end()
