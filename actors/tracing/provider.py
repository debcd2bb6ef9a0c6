"""Where a process sends its spans."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from expertmesh.configs.schema import DeploymentConfig

FLUSH_MS = 1000
"""Between two batches of spans."""


def span_provider(config: DeploymentConfig, process: str, replica: str) -> TracerProvider:
    """Exports spans to `tracing.otlp_endpoint` on a thread of its own; none waits for it.

    Args:
        config: the deployment's; its endpoint is set.
        process: `gateway` or `router`.
        replica: Serve's id of it.
    """
    endpoint = config.tracing.otlp_endpoint
    assert endpoint is not None
    resource = Resource.create(
        {
            "service.namespace": config.name,
            "service.name": f"expertmesh-{process}",
            "service.instance.id": replica,
            "expertmesh.model": config.served_name,
        }
    )
    sampler = ParentBased(TraceIdRatioBased(config.tracing.sample_ratio))
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=FLUSH_MS))
    return provider
