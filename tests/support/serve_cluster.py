"""A real Ray cluster with Serve for tests, and the deployments on it as their clients see them."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import ray
from ray import serve
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.serve.config import HTTPOptions, gRPCOptions
from serve_clients import Clients

from expertmesh.actors.app import CLUSTER_ENV, build_app
from expertmesh.actors.coordinator_access import coordinator_stub, stop_coordinator
from expertmesh.actors.fitting import fit_to_model
from expertmesh.actors.gateway.serve_proxy import SERVICER_FUNCTIONS
from expertmesh.cli.ports import free_ports
from expertmesh.configs.environment import inherited
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc
from expertmesh.proto.v1 import internal_pb2 as internal

START_S = 180.0
SETTLE_S = 60.0
POLL_S = 0.25
TOKEN_FILE = Path.home() / ".ray" / "auth_token"
OBJECT_STORE_BYTES = 128 << 20
SYSTEM_CONFIG = {"worker_niceness": 0}
"""As `expertmesh serve` has it."""


@dataclass(frozen=True)
class Deployment:
    """An application on the cluster."""

    config: DeploymentConfig
    http_url: str
    grpc_address: str
    dashboard_url: str
    key: str = ""
    """The API key that calls are made with, where the deployment asks for one."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Tells Serve's gRPC proxy which application is meant, and the gateway who calls."""
        authorization = (("authorization", f"Bearer {self.key}"),) if self.key else ()
        return (("application", self.config.name), *authorization)

    @contextlib.asynccontextmanager
    async def clients(self) -> AsyncIterator[Clients]:
        """Clients for the running event loop."""
        clients = Clients(self.http_url, self.grpc_address, self.metadata, self.key)
        try:
            yield clients
        finally:
            await clients.close()

    def topology(self) -> pb.Topology:
        """Cluster.GetTopology"""
        with grpc.insecure_channel(self.grpc_address) as channel:
            return self._topology(rpc.ClusterStub(channel))

    def _topology(self, stub: rpc.ClusterStub) -> pb.Topology:
        return stub.GetTopology(pb.GetTopologyRequest(), timeout=10, metadata=self.metadata)

    def until_quiet(self) -> None:
        """Waits until no request is open at any gateway, as the coordinator is told."""
        deadline_s = time.monotonic() + SETTLE_S
        while n := self.state().outstanding_requests:
            assert time.monotonic() < deadline_s, f"{n} requests are still open"
            time.sleep(POLL_S)

    def state(self) -> internal.TopologyUpdate:
        """What the coordinator that runs now says itself, once it runs and knows of a generation."""
        deadline_s = time.monotonic() + SETTLE_S
        seen = ""
        while time.monotonic() < deadline_s:
            try:
                with coordinator_stub(self.config) as stub:
                    state = stub.GetState(internal.GetStateRequest(), timeout=10)
                if state.state == "running":
                    return state
                seen = state.reason
            except (grpc.RpcError, LookupError, ray.exceptions.RayError) as error:
                seen = repr(error)
            time.sleep(POLL_S)
        raise TimeoutError(f"no generation is live within {SETTLE_S:g} s: {seen}")

    def until(
        self,
        condition: Callable[[pb.Topology], bool],
        what: str,
        timeout_s: float = SETTLE_S,
        poll_s: float = POLL_S,
    ) -> pb.Topology:
        """The first topology for which the condition holds."""
        deadline_s = time.monotonic() + timeout_s
        topology = None
        with grpc.insecure_channel(self.grpc_address) as channel:
            stub = rpc.ClusterStub(channel)
            while time.monotonic() < deadline_s:
                with contextlib.suppress(grpc.RpcError):
                    topology = self._topology(stub)
                    if condition(topology):
                        return topology
                time.sleep(poll_s)
        raise AssertionError(f"{self.config.name}: {what}: not within {timeout_s:g} s; last: {topology}")

    def until_complete(self, above: int = 0, timeout_s: float = START_S) -> pb.Topology:
        """Waits for a generation with a higher number than `above` that has every member."""
        wanted = (self.config.router.replicas, self.config.experts.replicas)

        def complete(topology: pb.Topology) -> bool:
            members = (len(topology.routers), len(topology.experts))
            return topology.state == "running" and topology.generation > above and members == wanted

        return self.until(complete, f"a generation of {wanted}", timeout_s)

    def scale_by_dashboard(self, deployment_name: str, n_replicas: int) -> None:
        """Asks Serve for replicas as people do: over the dashboard's port, with Ray's token."""
        path = f"/api/v1/applications/{self.config.name}/deployments/{deployment_name}/scale"
        headers = {"Content-Type": "application/json"}
        if TOKEN_FILE.exists():
            headers["Authorization"] = f"Bearer {TOKEN_FILE.read_text().strip()}"
        body = json.dumps({"target_num_replicas": n_replicas}).encode()
        request = urllib.request.Request(self.dashboard_url + path, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=SETTLE_S) as response:
            assert response.status == 200

    def until_settled(self, n_routers: int, n_experts: int, timeout_s: float = SETTLE_S) -> pb.Topology:
        """Waits for a live generation of this size with no change under way."""

        def settled(topology: pb.Topology) -> bool:
            size = (len(topology.routers), len(topology.experts))
            return (
                topology.state == "running"
                and size == (n_routers, n_experts)
                and not topology.HasField("change")
            )

        return self.until(settled, f"settled at {n_routers}x{n_experts}", timeout_s)

    def cluster_call(self, name: str, request: Any) -> Any:
        """One RPC of expertmesh.v1.Cluster."""
        with grpc.insecure_channel(self.grpc_address) as channel:
            stub = rpc.ClusterStub(channel)
            return getattr(stub, name)(request, timeout=SETTLE_S, metadata=self.metadata)

    def replica_pids(self, deployment_name: str) -> list[int]:
        """Operating-system processes of a Serve deployment's replicas."""
        prefix = f"SERVE_REPLICA::{self.config.name}#{deployment_name}#"
        return [pid_of(name, "serve") for name in actor_names("serve") if name.startswith(prefix)]


@dataclass(frozen=True)
class ClusterAddresses:
    """Where a cluster and its Serve are reached."""

    ray: str
    dashboard_url: str
    http_url: str
    grpc: str


class ServeCluster:
    """A Ray cluster with Serve, for as many deployments as a test wants beside each other.

    Args:
        addresses: where it is.
        env_of_nodes: environment variables that all of its processes have.
    """

    def __init__(self, addresses: ClusterAddresses, env_of_nodes: Mapping[str, str]) -> None:
        self.addresses = addresses
        self._env_of_nodes = env_of_nodes

    @classmethod
    def start(cls, address: str = "local", metrics_interval_s: float = 10.0) -> ServeCluster:
        """Starts Serve, and Ray on a single node where there is no cluster at an `address`.

        Args:
            metrics_interval_s: how often processes pass their metrics on to the agent that exports them.
        """
        local = {
            "num_cpus": 64,
            "include_dashboard": True,
            "_system_config": SYSTEM_CONFIG,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
        # As `expertmesh serve` has it, too.
        env_of_nodes = CLUSTER_ENV if address == "local" else {}
        # Ray's agents read their settings from nowhere else.
        interval = {"RAY_metrics_report_interval_ms": str(round(metrics_interval_s * 1e3))}
        with inherited(env_of_nodes | interval):
            context = ray.init(
                address=address, log_to_driver=False, **(local if address == "local" else {})
            )
        http_port, grpc_port = free_ports(2)
        serve.start(
            proxy_location="HeadOnly",  # several nodes of a test are one machine with one port
            http_options=HTTPOptions(host="127.0.0.1", port=http_port),
            grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=list(SERVICER_FUNCTIONS)),
            logging_config={"log_level": "WARNING"},
        )
        addresses = ClusterAddresses(
            context.address_info["address"],
            f"http://{context.dashboard_url}",
            f"http://127.0.0.1:{http_port}",
            f"127.0.0.1:{grpc_port}",
        )
        return cls(addresses, env_of_nodes)

    @classmethod
    def join(cls, addresses: ClusterAddresses) -> ServeCluster:
        """One that another process has started on a single node."""
        # Ray asks for its token at its own clusters, but sends it to a named one only when told to.
        maybe_enable_token_auth_if_token_available()
        ray.init(address=addresses.ray, log_to_driver=False)
        return cls(addresses, CLUSTER_ENV)

    def close(self) -> None:
        """Ends every process of the cluster."""
        serve.shutdown()
        ray.shutdown()

    def leave(self) -> None:
        """Leaves the cluster to others."""
        ray.shutdown()

    @contextlib.contextmanager
    def deploy(self, *configs: DeploymentConfig, key: str = "") -> Iterator[list[Deployment]]:
        """Runs applications side by side until the end of the block; `key` opens those that ask for one."""
        targets = [
            serve.RunTarget(
                target=build_app(config, self._env_of_nodes),
                name=config.name,
                route_prefix=f"/{config.name}",
                external_scaler_enabled=True,
            )
            for config in configs
        ]
        deployments = [
            Deployment(
                fit_to_model(c),
                f"{self.addresses.http_url}/{c.name}",
                self.addresses.grpc,
                self.addresses.dashboard_url,
                key,
            )
            for c in configs
        ]
        try:
            serve.run_many(targets, wait_for_applications_running=False)
            for deployment in deployments:
                deployment.until_complete()
            yield deployments
        finally:
            names = [config.name for config in configs]
            for name in names:
                serve.delete(name, _blocking=False)
            _until_deleted(names)
            for name in names:
                stop_coordinator(name)


def actor_names(namespace: str) -> list[str]:
    """Named actors of a namespace."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == namespace]


def pid_of(actor_name: str, namespace: str) -> int:
    """The process of a named actor."""
    actor = ray.get_actor(actor_name, namespace=namespace)
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=SETTLE_S)
    return pid


def cpu_s(pid: int) -> float:
    """User and system seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _until_deleted(names: Sequence[str]) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    while left := serve.status().applications.keys() & set(names):
        assert time.monotonic() < deadline_s, f"Serve is still deleting {sorted(left)}"
        time.sleep(POLL_S)
