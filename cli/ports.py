"""Ports of this machine: free ones for a deployment that leaves the choice, and a check of chosen ones."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Sequence
from pathlib import Path

from expertmesh.cli.errors import CliError
from expertmesh.configs.schema import DeploymentConfig

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_PORT = 20_000
"""Above the ports that Ray gives its workers by default (10002 to 19999)."""
TRIES = 1000


def with_free_ports(config: DeploymentConfig) -> DeploymentConfig:
    """Replaces port 0 by ports that are free on this machine now."""
    if config.http.port and config.grpc.port:
        return config
    free = (port for port in free_ports(3) if port not in (config.http.port, config.grpc.port))
    http_port = config.http.port or next(free)
    grpc_port = config.grpc.port or next(free)
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


def free_ports(n: int) -> list[int]:
    """TCP ports, all different, that nobody listens on and that the system gives to nobody by itself.

    It is seconds until somebody listens there. A port that the system had chosen could by then be that of
    a connection that anybody on this machine has opened.

    Raises:
        CliError: so many ports are not free.
    """
    with contextlib.ExitStack() as held:  # all until the last is chosen, so that they differ
        chosen: list[int] = []
        for port in _candidates(n):
            holder = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                holder.bind(("", port))
                chosen.append(holder.getsockname()[1])
            if len(chosen) == n:
                return chosen
    raise CliError("no free TCP ports are to be found; name them with --http-port and --grpc-port")


def _candidates(n: int) -> Sequence[int]:
    """Ports below those that the system gives to connections; 0, its own choice, where none are left."""
    try:
        first_ephemeral = int(EPHEMERAL.read_text().split()[0])
    except OSError:  # not Linux
        first_ephemeral = 32_768
    ports = range(FIRST_PORT, first_ephemeral)
    return random.SystemRandom().sample(ports, min(TRIES, len(ports))) or [0] * n
