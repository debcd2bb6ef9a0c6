"""The life of a deployment in the foreground: start, wait, stay, drain, leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import ray
from rich.console import Console

from expertmesh.actors.app import build_app
from expertmesh.actors.coordinator_access import coordinator_stub, stop_coordinator
from expertmesh.actors.gateway.serve_proxy import SERVICER_FUNCTIONS
from expertmesh.actors.gateway.topology import public_topology
from expertmesh.cli import display
from expertmesh.cli.drain import drain
from expertmesh.cli.endpoint import Endpoint
from expertmesh.cli.errors import EXIT_INTERRUPTED, CliError
from expertmesh.cli.gpus import with_gpu_shares
from expertmesh.cli.progress import Progress
from expertmesh.cli.ray_cluster import RayCluster
from expertmesh.cli.supervisor import Stop, StopRequestedError, supervise
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.models.spec import ModelSpec
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import internal_pb2 as internal

POLL_S = 0.25
WATCH_S = 5.0
TOPOLOGY_S = 5.0
FIND_COORDINATOR_S = 3.0
DELETE_S = 12.0
"""What Serve has to remove the replicas before an own cluster is ended under them."""
LEAVE_S = 25.0
"""Everything after the drain; drain and this together are the longest that a stop takes."""
START_EXTRA_S = 120.0
"""What a start may take beyond `failure.prepare_s`: Ray, Serve, the processes."""

WhenReady = Callable[[Endpoint, Stop], None]


@dataclass(frozen=True)
class Foreground:
    """A deployment that lives as long as its command.

    Args:
        config: ports must not be 0.
        spec: of the checkpoint, checked before.
        ray_address: the existing cluster to serve on; None for one of our own.
        console: where people read.
        when_ready: called once, when a generation is live.
        once: leave after `when_ready` instead of staying until a signal.
    """

    config: DeploymentConfig
    spec: ModelSpec
    ray_address: str | None
    console: Console
    when_ready: WhenReady | None = None
    once: bool = False

    def run(self) -> int:
        """Serves until SIGINT or SIGTERM; returns the exit code.

        Raises:
            CliError: it could not be started, or was deleted from outside.
        """
        return supervise(self._work, self.config.shutdown.drain_s + LEAVE_S)

    def _work(self, stop: Stop) -> int:
        self._say(f"{display.model_line(self.config, self.spec)}; {display.shape_line(self.config)}")
        with Progress(self.console) as progress:
            progress.show("starting a local Ray cluster" if self.ray_address is None else "joining Ray")
            cluster = RayCluster.connect(self.ray_address, self.config)
        deployed = live = False
        try:
            stop.signals_taken()
            stop.check()
            if cluster.dashboard_url:
                self._say(f"Ray dashboard: {cluster.dashboard_url}")
            config = with_gpu_shares(self.config, cluster.n_gpus)
            with Progress(self.console) as progress:
                progress.show("starting Serve")
                cluster.start_serve(config, SERVICER_FUNCTIONS)
                stop.check()
                deployed = True
                cluster.deploy(build_app(config, cluster.env_of_nodes), config.name)
                with Endpoint(display.grpc_address(config), config.name) as endpoint:
                    self._wait_until_live(cluster, endpoint, progress, stop)
            live = True
            display.print_ready(self.console, config, cluster.dashboard_url)
            with Endpoint(display.grpc_address(config), config.name) as endpoint:
                if self.when_ready is not None:
                    self.when_ready(endpoint, stop)
            if not self.once:
                self._say("Serving. Ctrl-C drains and stops; a second Ctrl-C stops at once.")
                self._stay(cluster, stop)
        except StopRequestedError:
            pass
        finally:
            self._leave(cluster, stop, deployed, live)
        return EXIT_INTERRUPTED if stop.at_once.is_set() else 0

    def _wait_until_live(
        self, cluster: RayCluster, endpoint: Endpoint, progress: Progress, stop: Stop
    ) -> None:
        started_s = time.monotonic()
        limit_s = self.config.failure.prepare_s + START_EXTRA_S
        while True:
            overview = cluster.check_application(self.config.name)
            topology = _topology(self.config)
            if topology is not None and self._complete(topology) and endpoint.healthy(TOPOLOGY_S):
                return
            running = {name: sum(n for state, n in d.replica_states.items() if state == "RUNNING")
                       for name, d in overview.deployments.items()}  # fmt: skip
            wanted = {
                "gateway": self.config.gateway.replicas,
                "router": self.config.router.replicas,
                "experts": self.config.experts.replicas,
            }
            replicas = {name: (running.get(name, 0), n) for name, n in wanted.items() if n}
            text = display.waiting_line(topology, replicas)
            progress.show(text, display.loaded_fraction(topology))
            if time.monotonic() - started_s > limit_s:
                raise CliError(f"no generation was live within {limit_s:.0f} s: {text}")
            stop.pause(POLL_S)

    def _complete(self, topology: pb.Topology) -> bool:
        wanted = (self.config.router.replicas, self.config.experts.replicas)
        return topology.state == "running" and (len(topology.routers), len(topology.experts)) == wanted

    def _stay(self, cluster: RayCluster, stop: Stop) -> None:
        while True:
            stop.pause(WATCH_S)
            cluster.check_application(self.config.name)

    def _leave(self, cluster: RayCluster, stop: Stop, deployed: bool, live: bool) -> None:
        name = self.config.name
        try:
            if live and not stop.at_once.is_set():
                self._drain(stop)
            if deployed:
                with Progress(self.console) as progress:
                    progress.show("stopping the replicas")
                    patience_s = 0.0 if stop.at_once.is_set() else DELETE_S
                    if not cluster.delete(name, patience_s) and not cluster.owned:
                        self._say(f"Serve is still removing the application {name!r}")
                stop_coordinator(name)
        except (CliError, ray.exceptions.RayError) as error:
            self._say(f"while stopping: {error}")
        finally:
            with Progress(self.console) as progress:
                progress.show("stopping Ray" if cluster.owned else "leaving the Ray cluster")
                cluster.close()
        self._say("Stopped.")

    def _drain(self, stop: Stop) -> None:
        try:
            with (
                coordinator_stub(self.config, FIND_COORDINATOR_S) as coordinator,
                Progress(self.console) as progress,
            ):

                def report(open_requests: int, left_s: float) -> None:
                    answers = open_requests >= 0
                    known = f"{open_requests} open" if answers else "the coordinator does not answer"
                    progress.show(f"draining: {known}, at most {left_s:.0f} s left" if progress.in_place
                                  else f"draining: {known}")  # fmt: skip

                left = drain(coordinator, self.config.shutdown.drain_s, stop.at_once, report)
        except (LookupError, ray.exceptions.RayError) as error:
            self._say(f"cannot drain, the coordinator does not answer: {error}")
            return
        if left > 0:
            self._say(f"cut off: {display.count(left, 'open request')}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _topology(config: DeploymentConfig) -> pb.Topology | None:
    """What the coordinator says; a gateway might ask for a key, which this command does not have."""
    try:
        with coordinator_stub(config, FIND_COORDINATOR_S) as coordinator:
            return public_topology(coordinator.GetState(internal.GetStateRequest(), timeout=TOPOLOGY_S))
    except (LookupError, ray.exceptions.RayError, grpc.RpcError):
        return None  # it is not there yet
