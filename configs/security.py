"""Settings that say who may do what."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from expertmesh.configs.section import Section


class AccessConfig(Section):
    """Who may call: API keys for HTTP and gRPC."""

    key_file: Path | None = None
    """The file with the hashes of the API keys (`expertmesh keys` writes it); relative paths start at the
    YAML's folder. Every node that runs a gateway needs it. When absent, everybody may do everything."""
    reload_s: float = Field(default=2.0, gt=0)
    """How often gateways look whether the file has changed."""


class InternalTlsConfig(Section):
    """Mutual TLS on the gRPC streams between gateways, routers, expert hosts and the coordinator. The files
    are PEM, on every node, and read anew for new connections. Rows on their way to experts have none."""

    cert_file: Path | None = None
    """The certificate that a process shows, made out to `server_name`. Without it there is no TLS."""
    key_file: Path | None = None
    """Its private key."""
    ca_file: Path | None = None
    """The CA of all certificates; it must sign for nothing else."""
    server_name: str = "expertmesh"
    """The DNS name that every certificate has, as addresses come and go."""

    @property
    def enabled(self) -> bool:
        """Whether there is TLS."""
        return self.cert_file is not None


class SecurityConfig(Section):
    """How the processes of the deployment know each other."""

    cluster_secret_file: Path | None = None
    """Holds the secret that internal calls prove to know; on every node. A line each: the first is proven,
    all are accepted. When absent one is drawn at the start, which Ray hands to all processes."""
    internal_tls: InternalTlsConfig = InternalTlsConfig()
