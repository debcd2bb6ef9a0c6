"""A whole node is lost under load: its router, its expert host, Ray's own processes there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from serve_cluster import OBJECT_STORE_BYTES, SYSTEM_CONFIG, Deployment, ServeCluster
from steady_calls import COALESCING, SteadyCalls, check, make_calls

from expertmesh.cli.ports import free_ports
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb

CALLS = make_calls(4, first_tokens=60, more_tokens=10)
HEAD_CPUS, NODE_CPUS = 3, 2
"""A gateway, a router and a host on the head; a router and a host on the other node."""
GIVEN_UP_S = 60.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes on this machine."""
    [dashboard_port] = free_ports(1)  # this way of starting takes no other when the usual one is taken
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": HEAD_CPUS,
            "include_dashboard": True,
            "dashboard_port": dashboard_port,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_system_config": SYSTEM_CONFIG,
        },
    )
    try:
        add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def spread(nodes: Cluster, demo_config: Callable[..., DeploymentConfig]) -> Iterator[Deployment]:
    """A router and a host on each node, in deterministic mode."""
    config = demo_config(
        "name=spread",
        COALESCING,
        "router.replicas=2",
        "gateway.cpus=1",
        "router.cpus=1",
        "experts.cpus=1",
        "engine.deterministic=true",
    )
    cluster = ServeCluster.start(nodes.address)
    try:
        with cluster.deploy(config) as [deployment]:
            yield deployment
    finally:
        cluster.close()


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=OBJECT_STORE_BYTES)


def kill_node(cluster: Cluster, topology: pb.Topology) -> set[str]:
    """SIGKILL to every process of the node that is not the head; the incarnations of its members."""
    [node] = cluster.worker_nodes
    lost = [m for m in (*topology.routers, *topology.experts) if m.node == node.node_id]
    assert [topology.routers, topology.experts] != [[], []]
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in [raylet, *children(raylet)]:
        os.kill(pid, signal.SIGKILL)
    return {member.incarnation for member in lost}


def until_alive(n_nodes: int) -> None:
    """Waits until Ray, too, has given the dead up; that takes its health checks some 15 s and more."""
    deadline_s = time.monotonic() + GIVEN_UP_S
    while (n := sum(node["Alive"] for node in ray.nodes())) != n_nodes:
        assert time.monotonic() < deadline_s, f"{n} nodes are alive by Ray's account"
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    """All processes below a process."""
    direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return direct + [below for child in direct for below in children(child)]


def test_a_lost_node_costs_no_stream_a_token_and_a_new_one_is_filled(
    spread: Deployment, nodes: Cluster
) -> None:
    before = spread.until_settled(2, 2)
    assert len({member.node for member in before.routers}) == 2
    assert len({member.node for member in before.experts}) == 2
    expected = SteadyCalls(spread, CALLS).alone()

    def strike() -> None:
        lost = kill_node(nodes, before)
        assert len(lost) == 2
        after = spread.until_settled(1, 1)
        assert not lost & {member.incarnation for member in (*after.routers, *after.experts)}

    check(SteadyCalls(spread, CALLS).during(strike), expected)
    [dead] = nodes.worker_nodes
    nodes.remove_node(dead, allow_graceful=False)
    add_node(nodes)
    check(SteadyCalls(spread, CALLS).during(lambda: spread.until_settled(2, 2) and None), expected)
    until_alive(2)
