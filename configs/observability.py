"""What a deployment tells of itself: metrics, traces, logs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from expertmesh.configs.section import Section


class MetricsConfig(Section):
    """What a deployment tells Prometheus, through Ray's agent on every node (docs/metrics.md)."""

    enabled: bool = True
    """Off: nothing is counted and nothing exported."""
    expert_load_top: int = Field(default=10, ge=0, le=1000)
    """So many of the most loaded experts are told of by name; 0 for none."""
    every_expert: bool = False
    """Tells the load of every expert: a series for each layer and expert."""


class TracingConfig(Section):
    """OpenTelemetry traces of requests through gateway, router and steps."""

    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """Where spans go: an OTLP receiver over gRPC, such as `http://collector:4317`. When absent nothing is
    traced."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that is traced. Where the client says in `traceparent` whether it traces its
    request, it is treated so."""
    decode_steps_per_span: int = Field(default=32, ge=1)
    """Decode steps of a request that one span covers."""


class LoggingConfig(Section):
    """What the processes write to their logs under Ray's session folder."""

    format: Literal["text", "json"] = "text"
    """`json`: an object a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Nothing below this is written. A line for each request that ends is `info`."""
    prompts: bool = False
    """Whether these lines have the prompts in them."""
