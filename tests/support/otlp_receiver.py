"""A receiver of OpenTelemetry spans over gRPC, as a collector is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

WAIT_S = 60.0


@dataclass(frozen=True)
class ReceivedSpan:
    """One span."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    begun_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    events: tuple[str, ...]


class OtlpReceiver(rpc.TraceServiceServicer):
    """Serves on a free port until `close`."""

    def __init__(self) -> None:
        self._spans: list[ReceivedSpan] = []
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        rpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802
        with self._changed:
            for of_resource in request.resource_spans:
                resource = _attributes(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self._spans += [_span(span, resource["service.name"]) for span in of_scope.spans]
            self._changed.notify_all()
        return pb.ExportTraceServiceResponse()

    def trace(self, trace_id: str, complete: Callable[[list[ReceivedSpan]], object]) -> list[ReceivedSpan]:
        """The spans of a trace once they fulfil a condition, in the order of their beginnings."""

        def found() -> list[ReceivedSpan]:
            spans = [span for span in self._spans if span.trace_id == trace_id]
            return sorted(spans, key=lambda span: span.begun_ns)

        with self._changed:
            done = self._changed.wait_for(lambda: complete(found()), WAIT_S)
            assert done, f"of trace {trace_id} there is only {found()}"
            return found()

    @property
    def n_spans(self) -> int:
        """Spans of all traces."""
        return len(self._spans)


def _span(span: Any, service: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        service,
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _attributes(span.attributes),
        tuple(event.name for event in span.events),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
