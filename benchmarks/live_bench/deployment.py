"""A deployment as an operator has it: `expertmesh serve` in a process, gRPC, Ray's dashboard."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
from serving_bench.processes import read_tail, wait_until

from expertmesh.cli.ports import free_ports
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc
from live_bench.processes import COORDINATOR, ClusterProcesses

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
APPLICATION = "demo"
START_S, STOP_S, CALL_S = 180.0, 90.0, 10.0
LEAVE_S = 5.0
"""For the last processes to go once the command has ended."""
POLL_S = 0.5
"""Each look costs the deployment some 10 ms of a core, which the streams would feel."""
TOKEN_FILE = Path.home() / ".ray" / "auth_token"


class DeploymentError(RuntimeError):
    """The deployment did not do what it was asked for; the message says what was seen."""


class Deployment:
    """Started on free ports; stopped as Ctrl-C does.

    Args:
        routers: at the start.
        experts: expert hosts at the start.
        overrides: `dotted.key=value` settings.
        log_file: takes the command's output.
    """

    def __init__(self, routers: int, experts: int, overrides: Sequence[str], log_file: Path) -> None:
        self.http_port, grpc_port = free_ports(2)
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self.http_url = f"http://127.0.0.1:{self.http_port}"
        self._log_file = log_file
        command = [
            *(str(Path(sys.executable).with_name("expertmesh")), "serve", str(CONFIG)),
            *("--routers", str(routers), "--experts", str(experts)),
            *("--http-port", str(self.http_port), "--grpc-port", str(grpc_port)),
            *(word for setting in overrides for word in ("--set", setting)),
        ]
        with log_file.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes = ClusterProcesses(self._process.pid)
        self._channel = grpc.insecure_channel(self.grpc_address)
        self._cluster = inference_pb2_grpc.ClusterStub(self._channel)
        try:
            if not wait_until(lambda: self._is_complete(routers, experts), START_S):
                raise DeploymentError(f"not ready within {START_S:.0f} s:\n{read_tail(log_file)}")
        except BaseException:
            self._end_by_force()
            raise

    def stop(self) -> None:
        """Sends SIGTERM and waits.

        Raises:
            DeploymentError: it did not end in peace, or left processes behind (which are killed).
        """
        self._channel.close()
        self.processes.alive()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._end_by_force()
            raise DeploymentError(
                f"did not end within {STOP_S:.0f} s:\n{read_tail(self._log_file)}"
            ) from None
        if code != 0:
            raise DeploymentError(f"ended with {code}:\n{read_tail(self._log_file)}")
        if not wait_until(lambda: not self.processes.alive(), LEAVE_S):
            raise DeploymentError(f"left processes behind: {'; '.join(self.processes.kill_rest())}")

    # ------------------------------------------------------------ operating it

    def topology(self) -> pb.Topology:
        """Who serves now."""
        return self._cluster.GetTopology(pb.GetTopologyRequest(), timeout=CALL_S)

    def expert_load(self) -> pb.ExpertLoad:
        """The routers' counts."""
        return self._cluster.GetExpertLoad(pb.GetExpertLoadRequest(), timeout=CALL_S)

    def scale(self, deployment: str, replicas: int) -> None:
        """Through the Ray dashboard's endpoint, as its users do. `deployment` is router or experts."""
        url = f"{self._dashboard_url}/api/v1/applications/{APPLICATION}/deployments/{deployment}/scale"
        body = json.dumps({"target_num_replicas": replicas}).encode()
        headers = {"Content-Type": "application/json"}
        if TOKEN_FILE.exists():
            headers["Authorization"] = f"Bearer {TOKEN_FILE.read_text().strip()}"
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=CALL_S):
                pass
        except urllib.error.HTTPError as error:
            raise DeploymentError(f"POST {url}: {error.code} {error.read().decode()[:300]}") from error

    def rebalance(self) -> pb.RebalanceResponse:
        """Through `Cluster.Rebalance`."""
        return self._cluster.Rebalance(pb.RebalanceRequest(), timeout=CALL_S)

    def wait_for_size(self, routers: int, experts: int, deadline_s: float) -> pb.Topology:
        """Returns the topology once a settled generation has this size. Raises DeploymentError."""
        if not wait_until(lambda: self._is_complete(routers, experts), deadline_s, POLL_S):
            seen = self.topology()
            raise DeploymentError(
                f"not {routers}x{experts} within {deadline_s:.0f} s but {len(seen.routers)}x"
                f"{len(seen.experts)}, {seen.state}: {seen.reason}; last change {seen.last_change}"
            )
        return self.topology()

    def wait_until_settled(self, deadline_s: float) -> pb.Topology:
        """Returns the topology once no change is under way. Raises DeploymentError."""
        if not wait_until(lambda: not self.topology().HasField("change"), deadline_s, POLL_S):
            raise DeploymentError(
                f"a change is still under way after {deadline_s:.0f} s: {self.topology().change}"
            )
        return self.topology()

    def wait_for(
        self, condition: Callable[[pb.Topology], bool], what: str, deadline_s: float, poll_s: float
    ) -> pb.Topology:
        """Returns the first topology for which the condition holds. Raises DeploymentError."""
        end_s, seen = now_s() + deadline_s, pb.Topology()
        while now_s() < end_s:
            self._check_runs()
            try:
                seen = self.topology()
                if condition(seen):
                    return seen
            except grpc.RpcError:
                pass  # the gateway is not there, or waits for the coordinator
            time.sleep(poll_s)
        raise DeploymentError(f"{what}: not within {deadline_s:.0f} s; last seen: {seen}")

    # ------------------------------------------------------------ its processes

    def coordinator_pid(self) -> int:
        """The coordinator's process. Raises DeploymentError when there is not just one."""
        pids = self.coordinator_pids()
        if len(pids) != 1:
            raise DeploymentError(f"{len(pids)} coordinators run: {pids}")
        return pids[0]

    def coordinator_pids(self) -> list[int]:
        """Its process, or several when there are too many."""
        return self.processes.titled(COORDINATOR)

    def gateway_pids(self) -> list[int]:
        """The processes of the gateway's replicas."""
        return self.processes.replicas(APPLICATION, "gateway")

    # ------------------------------------------------------------ inside

    @property
    def _dashboard_url(self) -> str:
        found = re.search(r"Ray dashboard: (http://\S+)", self._log_file.read_text())
        if found is None:
            raise DeploymentError("the command printed no dashboard address")
        return found[1]

    def _end_by_force(self) -> None:
        self.processes.alive()
        self._process.kill()
        self._process.wait()
        self.processes.kill_rest()

    def _check_runs(self) -> None:
        if self._process.poll() is not None:
            raise DeploymentError(f"the command has ended:\n{read_tail(self._log_file)}")

    def _is_complete(self, routers: int, experts: int) -> bool:
        self._check_runs()
        try:
            topology = self.topology()
        except grpc.RpcError:
            return False
        size = (len(topology.routers), len(topology.experts))
        return (
            topology.state == "running" and size == (routers, experts) and not topology.HasField("change")
        )


def now_s() -> float:
    """The clock of all records."""
    return time.monotonic()
