"""Free ports for a deployment that leaves the choice."""

from __future__ import annotations

import socket

from expertmesh.configs.schema import DeploymentConfig


def with_free_ports(config: DeploymentConfig) -> DeploymentConfig:
    """Replaces port 0 by ports that are free on this machine now."""
    with socket.socket() as http, socket.socket() as grpc:
        # Both are held until both are chosen, so that they differ.
        http_port = config.http.port or _free_port(http)
        grpc_port = config.grpc.port or _free_port(grpc)
    return config.model_copy(
        update={
            "http": config.http.model_copy(update={"port": http_port}),
            "grpc": config.grpc.model_copy(update={"port": grpc_port}),
        }
    )


def _free_port(holder: socket.socket) -> int:
    holder.bind(("", 0))
    port: int = holder.getsockname()[1]
    return port
