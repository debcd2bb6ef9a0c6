"""Spans of a request at its gateway and its router, in a memory exporter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode

from expertmesh.actors.gateway.access.gate import Caller
from expertmesh.actors.gateway.access.level import Access
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.telemetry import GatewayTelemetry
from expertmesh.actors.tracing.process import gateway_tracing, router_tracing
from expertmesh.actors.tracing.requests import RequestSpans
from expertmesh.actors.tracing.steps import StepTraces
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.engine.batch import ScheduledSequence, StepBatch
from expertmesh.engine.request import RequestKey, SamplingParams

TRACE, CLIENT = "4b" * 16, "00f067aa0ba902b7"
TRACED, UNTRACED = (f"00-{TRACE}-{CLIENT}-{flags}" for flags in ("01", "00"))
KEY = RequestKey("r", 1)


@pytest.fixture
def traced() -> SimpleNamespace:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return SimpleNamespace(tracer=provider.get_tracer("test"), spans=exporter.get_finished_spans)


def batch(n_tokens: int, n_context: int, *others: RequestKey) -> StepBatch:
    params = SamplingParams(max_tokens=5)
    return StepBatch(
        tuple(
            ScheduledSequence(key, params, (7,) * n_tokens, n_context, (0,), samples=True, n_prompt=3)
            for key in (KEY, *others)
        )
    )


def named(spans: tuple[ReadableSpan, ...], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def test_a_traced_request_at_the_gateway(traced):
    telemetry = GatewayTelemetry(spans=RequestSpans(traced.tracer))
    record = telemetry.begin("grpc", Caller(Access.USER, traceparent=TRACED))
    assert record.trace_id == TRACE
    assert record.traceparent.startswith(f"00-{TRACE}-")
    assert CLIENT not in record.traceparent, "routers' spans hang below the gateway's, not beside it"
    clock = record.clock()
    clock.placed(0, 1)
    clock.tokens(1)
    record.end()
    [span] = traced.spans()
    assert f"{span.parent.span_id:016x}" == CLIENT
    assert [event.name for event in span.events] == ["placed", "first token"]
    assert span.attributes["expertmesh.outcome"] == "completed"


def test_a_failure_is_an_error_without_the_clients_words(traced):
    telemetry = GatewayTelemetry(spans=RequestSpans(traced.tracer))
    record = telemetry.begin("grpc", Caller(Access.USER, traceparent=TRACED))
    record.end(GatewayError(ErrorKind.INVALID, "a quoted prompt"))
    [span] = traced.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert "quoted" not in f"{span.status.description} {dict(span.attributes)}"


@pytest.mark.parametrize("traceparent", ["", UNTRACED, "nonsense"])
def test_what_is_not_sampled_is_not_passed_on(traced, traceparent):
    telemetry = GatewayTelemetry(spans=RequestSpans(traced.tracer))
    record = telemetry.begin("grpc", Caller(Access.USER, traceparent=traceparent))
    record.end()
    assert (record.trace_id, record.traceparent, traced.spans()) == ("", "", ())


def test_a_routers_steps_become_spans_when_the_request_ends(traced):
    traces = StepTraces(traced.tracer, steps_per_span=3)
    traces.begin(KEY, TRACED, n_tokens=20)
    other = RequestKey("untraced")
    traces.step(batch(16, 0, other), 5.0)
    traces.step(batch(4, 16), 5.0)
    for i in range(5):
        traces.step(batch(1, 20 + i, other), 2.0)
    assert traced.spans() == ()
    traces.end(KEY, "length")
    spans = traced.spans()
    [route] = named(spans, "route")
    assert f"{route.context.trace_id:032x}" == TRACE
    assert (route.attributes["expertmesh.attempt"], route.attributes["expertmesh.finish_reason"]) == (
        1,
        "length",
    )
    assert [s.attributes["expertmesh.tokens"] for s in named(spans, "prefill")] == [16, 4]
    assert [s.attributes["expertmesh.steps"] for s in named(spans, "decode")] == [3, 2]
    [queue] = named(spans, "queue")
    assert queue.end_time >= queue.start_time
    assert all(s.parent.span_id == route.context.span_id for s in spans if s is not route)


def test_requests_that_end_twice_or_were_never_traced_leave_nothing(traced):
    traces = StepTraces(traced.tracer, steps_per_span=3)
    traces.begin(KEY, UNTRACED, n_tokens=3)
    traces.step(batch(3, 0), 1.0)
    traces.end(KEY, "stop")
    traces.begin(KEY, TRACED, n_tokens=3)
    traces.end(KEY, "cancelled", "the stream ended")
    traces.end(KEY, "stop")
    [route] = traced.spans()
    assert route.status.description == "the stream ended"


def test_nothing_is_traced_unless_asked_for():
    config = DeploymentConfig.model_validate({"model": {"path": "/nowhere"}})
    assert gateway_tracing(config, "x") is None
    assert router_tracing(config, "x") is None
