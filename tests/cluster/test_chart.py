"""The chart's application on a Ray cluster that offers what its pods do: it serves and changes in place."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import ray
import yaml
from helm_chart import CHART, Chart, Rendering, unpack_tools
from ray import serve
from serve_clients import Call
from serve_cluster import (
    OBJECT_STORE_BYTES,
    POLL_S,
    SETTLE_S,
    START_S,
    TOKEN_FILE,
    Deployment,
)

from expertmesh.actors.coordinator_access import stop_coordinator
from expertmesh.cli.ports import free_ports
from expertmesh.configs.load import config_from_dict
from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

SCRAPE_S = 60.0
NEVER_HERE = {"ray_serve_health_check_failures_total", "ray_expertmesh_deadline_misses_total"}
"""Exported only once a health check has failed, or a member has missed a deadline."""


@dataclass
class Release:
    """What `helm install` and `helm upgrade` do; KubeRay's part is a PUT to Serve's REST port."""

    chart: Chart
    dashboard_url: str
    settings: tuple[str, ...]
    key_file: Path
    """Stands for the Secret that the gateways' pods mount."""
    keys: dict[str, str] = field(default_factory=dict)
    """What the chart has drawn, by role."""
    rendering: Rendering = field(init=False)

    def upgrade(self, *changes: str) -> None:
        """Renders with changes and hands the result to Serve, as the operator does."""
        self.rendering = self.chart.render((), *self.settings, *changes)
        if not self.keys:  # an upgrade finds the Secrets there
            secrets = {s["metadata"]["name"]: s["data"] for s in self.rendering.of("Secret")}
            [clear] = [data for name, data in secrets.items() if name.endswith("-api-keys-clear")]
            [hashed] = [data for name, data in secrets.items() if name.endswith("-api-keys")]
            self.keys = {role: b64decode(key).decode() for role, key in clear.items()}
            self.key_file.write_bytes(b64decode(hashed["keys"]))
        headers = {"Content-Type": "application/json"}
        if TOKEN_FILE.exists():
            headers["Authorization"] = f"Bearer {TOKEN_FILE.read_text().strip()}"
        config = self.rendering.serve_config
        assert config["applications"][0]["args"]["access"] == {"key_file": "/etc/expertmesh/api-keys/keys"}
        config["applications"][0]["args"]["access"]["key_file"] = str(self.key_file)
        body = json.dumps(config).encode()
        url = f"{self.dashboard_url}/api/serve/applications/"
        request = urllib.request.Request(url, body, headers, method="PUT")
        with urllib.request.urlopen(request, timeout=SETTLE_S) as response:
            assert response.status == 200

    @property
    def deployment(self) -> Deployment:
        """The application as its clients see it."""
        config = self.rendering.serve_config
        [application] = config["applications"]
        return Deployment(
            config_from_dict(application["args"]),
            f"http://127.0.0.1:{config['http_options']['port']}",
            f"127.0.0.1:{config['grpc_options']['port']}",
            self.dashboard_url,
            self.keys["admin"],
        )

    def helm_test(self) -> subprocess.CompletedProcess[str]:
        """Runs what the pod of `helm test` runs."""
        [container] = self.rendering.one("Pod")["spec"]["containers"]
        deployment = self.deployment
        given = {v["name"]: v["value"] for v in container["env"] if "value" in v}
        [secret] = [v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v]
        assert secret["name"].endswith("-api-keys-clear")
        here = {
            "HTTP_URL": deployment.http_url,
            "GRPC_ADDRESS": deployment.grpc_address,
            "API_KEY": self.keys[secret["key"]],
        }
        command = [sys.executable, *container["command"][1:], *container["args"]]
        return subprocess.run(
            command, env=os.environ | given | here, capture_output=True, text=True, timeout=START_S
        )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    chart = Chart(unpack_tools(tmp_path_factory.mktemp("tools")))
    groups = chart.render().cluster["workerGroupSpecs"]
    # One node stands for three pods of each group, and offers what theirs would.
    offered: dict[str, float] = {}
    for group in groups:
        of_one = yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"]))
        offered |= {name: 3.0 * amount for name, amount in of_one.items()}
    context = ray.init(
        address="local",
        num_cpus=16,
        resources=offered,
        include_dashboard=True,
        _system_config={"worker_niceness": 0},
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    http_port, grpc_port = free_ports(2)
    settings = (
        f"deployment.model.path={CHART.parent / 'configs' / 'demo'}",
        f"deployment.http.port={http_port}",
        f"deployment.grpc.port={grpc_port}",
        "deployment.router.threads=1",
        "deployment.experts.threads=1",
        "deployment.device=cpu",
        "monitoring.prometheusRule.enabled=true",
        "apiKeys.enabled=true",
    )
    key_file = tmp_path_factory.mktemp("api-keys") / "keys"
    found = Release(chart, f"http://{context.dashboard_url}", settings, key_file)
    try:
        found.upgrade()
        yield found
    finally:
        serve.shutdown()
        stop_coordinator("expertmesh")
        ray.shutdown()


def pids(topology: pb.Topology) -> list[set[int]]:
    return [{member.pid for member in members} for members in (topology.routers, topology.experts)]


def refused(deployment: Deployment, **body: Any) -> bool:
    """Whether the gateway refuses a request as invalid."""
    text = json.dumps({"model": "", "prompt": "a", "max_tokens": 1} | body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {deployment.key}"}
    request = urllib.request.Request(f"{deployment.http_url}/v1/completions", text, headers)
    try:
        urllib.request.urlopen(request, timeout=SETTLE_S).close()
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        return True
    return False


def test_what_the_chart_renders_generates_tokens(release: Release) -> None:
    done = release.helm_test()
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert told == ["health", "refusal", "over_http", "over_grpc"]
    topology = release.deployment.until_settled(1, 2)
    assert topology.state == "running"


def test_openais_client_and_grpc_are_answered_with_keys_and_refused_without(release: Release) -> None:
    deployment, call = release.deployment, Call(prompt=(5, 6, 7), max_tokens=4)
    user = replace(deployment, key=release.keys["user"])

    async def ask() -> None:
        async with user.clients() as clients:
            assert (await clients.http_whole(call)).token_ids == (await clients.grpc_whole(call)).token_ids
        async with replace(deployment, key="").clients() as clients:
            with pytest.raises(openai.AuthenticationError):
                await clients.http_whole(call)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await clients.grpc_whole(call)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(ask())
    with pytest.raises(grpc.RpcError, match="needs a key with the role admin"):
        user.cluster_call("Rebalance", pb.RebalanceRequest())


def test_an_upgrade_scales_and_sets_limits_without_restarting_anything(release: Release) -> None:
    deployment = release.deployment
    routers, experts = pids(deployment.until_settled(1, 2))
    gateways = deployment.replica_pids("gateway")
    assert not refused(deployment, n=2)
    release.upgrade("deployment.experts.replicas=3", "deployment.limits.max_n=1")
    after = deployment.until_settled(1, 3)
    routers_after, experts_after = pids(after)
    assert routers_after == routers
    assert experts < experts_after
    deadline_s = time.monotonic() + SETTLE_S
    while not refused(deployment, n=2):
        assert time.monotonic() < deadline_s, "the new limit does not hold"
        time.sleep(POLL_S)
    assert deployment.replica_pids("gateway") == gateways
    # There is room for no fourth: the node offers the resource of the group three times.
    with pytest.raises(grpc.RpcError, match="room for 3 expert hosts, not for 4"):
        deployment.cluster_call("Scale", pb.ScaleRequest(what="experts", replicas=4))


def test_an_upgrade_switches_autoscaling_on_without_restarting_anything(release: Release) -> None:
    deployment = release.deployment
    before = pids(deployment.until_settled(1, 3))
    # Above the bound below there is no load that asks for more.
    release.upgrade(
        "deployment.experts.replicas=3",
        "deployment.limits.max_n=1",
        "deployment.autoscaling.enabled=true",
        "deployment.autoscaling.router.min_replicas=2",
        "deployment.autoscaling.router.max_replicas=3",
        "deployment.autoscaling.upscale_delay_s=0",
        "deployment.autoscaling.manual_hold_s=0",
    )
    routers, experts = pids(deployment.until_settled(2, 3))
    assert before[0] < routers
    assert before[1] == experts


def test_the_metrics_that_alerts_name_are_exported(release: Release) -> None:
    deployment = release.deployment
    assert refused(deployment, max_tokens=-1)
    wrong = pb.GenerateRequest(prompt="a", params=pb.SamplingParams(temperature=-1.0))
    with grpc.insecure_channel(deployment.grpc_address) as channel:
        stub = rpc.InferenceStub(channel)
        stream = stub.GenerateStream(wrong, timeout=SETTLE_S, metadata=deployment.metadata)
        with pytest.raises(grpc.RpcError):
            list(stream)
    [group] = release.rendering.one("PrometheusRule")["spec"]["groups"]
    wanted = {name for rule in group["rules"] for name in re.findall(r"\bray_[a-z0-9_]+", rule["expr"])}
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline_s = time.monotonic() + SCRAPE_S
    while True:
        with urllib.request.urlopen(url, timeout=SETTLE_S) as response:
            exported = set(re.findall(r"^(ray_\w+)", response.read().decode(), re.MULTILINE))
        missing = wanted - exported - NEVER_HERE
        if not missing:
            break
        assert time.monotonic() < deadline_s, f"not exported: {sorted(missing)}"
        time.sleep(1.0)
