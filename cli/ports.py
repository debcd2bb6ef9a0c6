"""Ports of this machine: free ones for a deployment that leaves the choice, and a check of chosen ones."""

from __future__ import annotations

import socket

from expertmesh.cli.errors import CliError
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


def check_free(config: DeploymentConfig) -> None:
    """Sees that nothing on this machine listens on the deployment's ports.

    Raises:
        CliError: names the port and the option that chooses another.
    """
    for option, host, port in (
        ("--http-port", config.http.host, config.http.port),
        ("--grpc-port", "", config.grpc.port),
    ):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                problem = f"port {port} cannot be used ({error.strerror})"
                raise CliError(f"{problem}; choose another with {option}") from error


def _free_port(holder: socket.socket) -> int:
    holder.bind(("", 0))
    port: int = holder.getsockname()[1]
    return port
