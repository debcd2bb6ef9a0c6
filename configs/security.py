"""Settings of what passes between the processes of a deployment."""

from __future__ import annotations

from pathlib import Path

from expertmesh.configs.section import Section


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
