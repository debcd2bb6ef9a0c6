"""`expertmesh serve` on a Ray cluster that is there already: it leaves the cluster as it found it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import ray
from ray import serve as ray_serve

from expertmesh.cli.ports import free_ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that somebody else runs."""
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


def test_it_deploys_there_and_takes_only_its_own_away(serve, cluster):
    serving = serve("--experts", "0", "--set", "name=guest", RAY_ADDRESS=cluster)
    serving.wait_for("Serving")
    assert {a["namespace"] for a in ray.util.list_named_actors(all_namespaces=True)} == {
        "serve",
        "expertmesh",
    }
    serving.signal(signal.SIGTERM)
    assert serving.wait(60) == 0, serving.output
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 4, "the cluster goes on"
    assert ray.util.list_named_actors(all_namespaces=True) == []


def test_a_serve_instance_on_other_ports_is_named_and_left_alone(command, cluster, repository):
    http_port, grpc_port, other_http, other_grpc = free_ports(4)
    ray_serve.start(
        http_options={"host": "127.0.0.1", "port": http_port},
        grpc_options={"port": grpc_port, "grpc_servicer_functions": []},
    )
    try:
        config = str(repository / "configs" / "demo.yaml")
        ports = ("--http-port", str(other_http), "--grpc-port", str(other_grpc))
        refused = command("serve", config, *ports, RAY_ADDRESS=cluster)
        assert refused.wait(60) == 1
        assert f"HTTP on port {http_port} and gRPC on port {grpc_port}" in refused.output
        assert f"wants {other_http} and {other_grpc}" in refused.output
        assert "Traceback" not in refused.output
        assert ray_serve.status().proxies, "that instance still runs"
        assert ray_serve.status().applications == {}
    finally:
        ray_serve.shutdown()


def test_an_address_where_nothing_answers_is_named(command, repository):
    [port] = free_ports(1)
    refused = command("serve", str(repository / "configs" / "demo.yaml"), RAY_ADDRESS=f"127.0.0.1:{port}")
    assert refused.wait(60) == 1
    assert f"cannot join the Ray cluster at 127.0.0.1:{port}: nothing answers there" in refused.output
    assert "Traceback" not in refused.output
