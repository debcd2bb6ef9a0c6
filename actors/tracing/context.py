"""W3C Trace Context: the `traceparent` by which a span is part of another process's trace."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_HEADER = "traceparent"


def parent_of(traceparent: str) -> Context:
    """The context of the span that a header names; an empty one when it names none."""
    return TraceContextTextMapPropagator().extract({_HEADER: traceparent}, context=Context())


def traceparent_of(span: Span) -> str:
    """What others have to be told to be part of a span; empty when it is not recorded."""
    if not span.is_recording():
        return ""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
