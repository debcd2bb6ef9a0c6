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
