"""Settings of where clients come in, and who may."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from expertmesh.configs.section import Section


class HttpConfig(Section):
    """Where Serve's HTTP proxy listens."""

    host: str = "127.0.0.1"
    """The interface; `0.0.0.0` for all."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0: `expertmesh serve` picks a free one."""
    tls_cert_file: Path | None = None
    """PEM, on every node with a proxy; with it Serve's proxies speak HTTPS. Read when Serve starts."""
    tls_key_file: Path | None = None
    """The certificate's key."""


class GrpcConfig(Section):
    """Where Serve's gRPC proxy listens: on every interface, Serve has no choice of one."""

    port: int = Field(default=9000, ge=0, le=65535)
    """0: `expertmesh serve` picks a free one."""


class AccessConfig(Section):
    """Who may call: API keys for HTTP and gRPC."""

    key_file: Path | None = None
    """The file with the hashes of the API keys (`expertmesh keys` writes it); relative paths start at the
    YAML's folder. Every node that runs a gateway needs it. When absent, everybody may do everything."""
    reload_s: float = Field(default=2.0, gt=0)
    """How often gateways look whether the file has changed."""
