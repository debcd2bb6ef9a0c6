"""Tracing of a gateway or a router, where the deployment asks for it. Imports OpenTelemetry only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expertmesh.configs.schema import DeploymentConfig

if TYPE_CHECKING:
    from expertmesh.actors.tracing.requests import RequestSpans
    from expertmesh.actors.tracing.steps import StepTraces

NAME = "expertmesh"


@dataclass(frozen=True, slots=True)
class GatewayTracing:
    """A gateway's spans."""

    spans: RequestSpans
    close: Callable[[], None]
    """Sends what is left; may block."""


@dataclass(frozen=True, slots=True)
class RouterTracing:
    """A router's spans."""

    traces: StepTraces
    close: Callable[[], None]
    """Sends what is left; may block."""


def gateway_tracing(config: DeploymentConfig, replica: str) -> GatewayTracing | None:
    """None when nothing is traced."""
    if config.tracing.otlp_endpoint is None:
        return None
    from expertmesh.actors.tracing.provider import span_provider
    from expertmesh.actors.tracing.requests import RequestSpans

    provider = span_provider(config, "gateway", replica)
    return GatewayTracing(RequestSpans(provider.get_tracer(NAME)), provider.shutdown)


def router_tracing(config: DeploymentConfig, replica: str) -> RouterTracing | None:
    """None when nothing is traced."""
    if config.tracing.otlp_endpoint is None:
        return None
    from expertmesh.actors.tracing.provider import span_provider
    from expertmesh.actors.tracing.steps import StepTraces

    provider = span_provider(config, "router", replica)
    traces = StepTraces(provider.get_tracer(NAME), config.tracing.decode_steps_per_span)
    return RouterTracing(traces, provider.shutdown)
