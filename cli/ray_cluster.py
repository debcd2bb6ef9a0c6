"""Every call that the command line makes to Ray and Serve; imported only where a deployment is started."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from expertmesh.actors.app import CLUSTER_ENV
from expertmesh.cli import processes
from expertmesh.cli.deploy_config import http_options
from expertmesh.cli.errors import CliError
from expertmesh.configs.environment import RAY_ADDRESS_VARIABLE, inherited
from expertmesh.configs.schema import DeploymentConfig

CONNECT_S = 5.0
CALL_S = 10.0
"""For one question to Serve's controller."""
PROCESSES_END_S = 3.0
"""What Ray's processes have to end by themselves after its shutdown."""
SPARE_CPUS = 8
"""Logical CPUs of an own cluster beyond what the deployment takes, so that it can be scaled up by hand."""
WORKER_NICENESS = 0
"""Of an own cluster's processes. Ray's default is 15, which a process gets once it has started: one that
still starts, a replica that joins, would take the processors from those that serve."""
OBJECT_STORE_BYTES = 128 << 20
"""Of an own cluster: nothing large goes through Ray's object store."""


class RayCluster:
    """The Ray cluster that a deployment runs on: an existing one, or a local one that ends with it.

    Use it from one thread that lives as long as it does.
    """

    def __init__(self, address: str | None, dashboard_url: str, owned: bool) -> None:
        self.address = address
        self.dashboard_url = dashboard_url
        self.owned = owned
        self._serve_started = False

    # ------------------------------------------------------------ the cluster

    @classmethod
    def connect(cls, address: str | None, config: DeploymentConfig) -> RayCluster:
        """Joins the cluster at `address`, or starts one on this machine when there is none.

        Raises:
            CliError: nothing answers there, or Ray did not start.
        """
        _silence_ray()
        try:
            if address is not None:
                _check_reachable(address)
                context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                # "local" never attaches to a cluster that somebody else runs on this machine.
                with inherited(CLUSTER_ENV):
                    context = ray.init(
                        address="local",
                        num_cpus=max(os.cpu_count() or 1, math.ceil(needed_cpus(config)) + SPARE_CPUS),
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=True,
                        _system_config={"worker_niceness": WORKER_NICENESS},
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            what = (
                f"cannot join the Ray cluster at {address}"
                if address
                else "cannot start a local Ray cluster"
            )
            raise CliError(f"{what}: {error}") from error
        return cls(
            address, f"http://{context.dashboard_url}" if context.dashboard_url else "", address is None
        )

    @property
    def env_of_nodes(self) -> Mapping[str, str]:
        """Environment variables that all of the cluster's processes are known to have."""
        return CLUSTER_ENV if self.owned else {}

    @property
    def n_gpus(self) -> int:
        """GPUs of the whole cluster."""
        return int(ray.cluster_resources().get("GPU", 0))

    def close(self) -> None:
        """Leaves the cluster; one of our own ends, with every process that it started."""
        started = processes.descendants() if self.owned else frozenset()
        if self._serve_started and not self.owned:
            serve.shutdown()
        ray.shutdown()
        processes.end(started, PROCESSES_END_S)

    # ------------------------------------------------------------ Serve

    def start_serve(self, config: DeploymentConfig, servicer_functions: Sequence[str]) -> None:
        """Starts Serve with the deployment's ports, or uses the instance that runs with just these.

        Raises:
            CliError: Serve runs there otherwise.
        """
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is not None:
            self._check_serve(client._controller, config, servicer_functions)
            return
        with _serve_errors("Serve did not start"):
            serve.start(
                http_options=http_options(config.http),
                grpc_options=gRPCOptions(
                    port=config.grpc.port, grpc_servicer_functions=list(servicer_functions)
                ),
                logging_config={"log_level": "WARNING"},
            )
        self._serve_started = True

    def _check_serve(
        self, controller: Any, config: DeploymentConfig, servicer_functions: Sequence[str]
    ) -> None:
        http = ray.get(controller.get_http_config.remote(), timeout=CALL_S)
        grpc = ray.get(controller.get_grpc_config.remote(), timeout=CALL_S)
        if (http.port, grpc.port) != (config.http.port, config.grpc.port):
            raise CliError(
                f"Serve runs on this Ray cluster already, with HTTP on port {http.port} and gRPC on port "
                f"{grpc.port}; this deployment wants {config.http.port} and {config.grpc.port}. Ports are "
                f"fixed while it runs: give --http-port {http.port} --grpc-port {grpc.port}, "
                "or shut Serve down"
            )
        missing = sorted(set(servicer_functions) - set(grpc.grpc_servicer_functions))
        if missing:
            raise CliError(
                "Serve runs on this Ray cluster already, but its gRPC proxy was started without "
                f"{', '.join(missing)}. Shut Serve down, or start it with these servicer functions"
            )
        if config.name in serve.status().applications:
            raise CliError(
                f"an application named {config.name!r} runs on this Ray cluster already; "
                "give another name with --set name=NAME"
            )

    def deploy(self, application: serve.Application, name: str) -> None:
        """Hands the application to Serve and returns at once."""
        with _serve_errors("Serve refused the application"):
            serve.run_many(
                [
                    serve.RunTarget(
                        target=application, name=name, route_prefix="/", external_scaler_enabled=True
                    )
                ],
                wait_for_applications_running=False,
                wait_for_ingress_deployment_creation=False,
            )

    def check_application(self, name: str) -> ApplicationStatusOverview:
        """The application's status.

        Raises:
            CliError: it is gone, or Serve has given it up.
        """
        with _serve_errors("the Ray cluster does not answer"):
            overview = serve.status().applications.get(name)
        if overview is None or overview.status == ApplicationStatus.DELETING:
            raise CliError(f"the application {name!r} has been deleted")
        if overview.status == ApplicationStatus.DEPLOY_FAILED:
            raise CliError(f"the application {name!r} did not start: {failure_text(overview)}")
        return overview

    def delete(self, name: str, patience_s: float) -> bool:
        """Removes the application; whether it was gone within `patience_s`."""
        deadline_s = time.monotonic() + patience_s
        with _serve_errors("Serve could not delete the application"):
            serve.delete(name, _blocking=False)
            while name in serve.status().applications:
                if time.monotonic() > deadline_s:
                    return False
                time.sleep(0.1)
        return True


def needed_cpus(config: DeploymentConfig) -> float:
    """Logical CPUs that all replicas of the deployment reserve."""
    parts = (config.gateway, config.router, config.experts)
    return sum(part.replicas * part.cpus for part in parts)


def failure_text(overview: ApplicationStatusOverview) -> str:
    """What Serve says about a failed application: the last line of the first deployment that has one."""
    messages = [d.message for d in overview.deployments.values() if d.message] or [overview.message]
    lines = [line.strip() for line in messages[0].splitlines() if line.strip()]
    return lines[-1] if lines else "Serve gives no reason"


def _silence_ray() -> None:
    # Ray and Serve report every step on stderr; what matters to the user is said by the command itself.
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ConnectionError(
            f"nothing answers there ({error.strerror or error}); "
            f"without {RAY_ADDRESS_VARIABLE} a local one is started"
        ) from error


@contextlib.contextmanager
def _serve_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (ray.exceptions.RayError, serve.exceptions.RayServeException, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CliError(f"{what}: {lines[-1]}") from error
