"""The autoscaler on a real cluster: up under load and down after it, and no stream notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from serve_cluster import Deployment, ServeCluster
from steady_calls import COALESCING, SteadyCalls, check, make_calls

from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb

CALLS = make_calls(6, first_tokens=40, more_tokens=5)
SCALED_S = 120.0


@pytest.fixture(scope="module")
def scaled(cluster: ServeCluster, demo_config: Callable[..., DeploymentConfig]) -> Iterator[Deployment]:
    """1 router and 1 host that may become 2 each: six streams are too many for one, and one is not."""
    config = demo_config(
        "name=autoscaled",
        COALESCING,
        "engine.deterministic=true",
        "experts.replicas=1",
        "autoscaling.enabled=true",
        "autoscaling.interval_s=0.2",
        "autoscaling.upscale_delay_s=0.5",
        "autoscaling.downscale_delay_s=2",
        "autoscaling.router.max_replicas=2",
        "autoscaling.experts.max_replicas=2",
        "autoscaling.target_router_requests=2",
        "autoscaling.target_experts_busy=0.02",
    )
    with cluster.deploy(config) as [deployment]:
        yield deployment


@pytest.fixture(scope="module")
def expected(deterministic_1x2: Deployment) -> list[list[int]]:
    """The tokens of every call, from a deployment that nobody scales."""
    return SteadyCalls(deterministic_1x2, CALLS).alone()


def size(topology: pb.Topology) -> tuple[int, int]:
    """Routers and expert hosts."""
    return len(topology.routers), len(topology.experts)


def test_load_scales_up_and_its_end_scales_down(scaled: Deployment, expected: list[list[int]]) -> None:
    assert size(scaled.until_settled(1, 1)) == (1, 1)
    under_load: list[pb.Topology] = []

    def wait_for_more() -> None:
        under_load.append(scaled.until_settled(2, 2, SCALED_S))

    check(SteadyCalls(scaled, CALLS, pauses=0).during(wait_for_more), expected)
    [full] = under_load
    assert (full.last_change.kind, full.last_change.outcome) == ("scale", "live")

    # One stream goes on while the second router leaves, whichever of the two it runs on.
    def wait_for_one_router() -> None:
        scaled.until(lambda t: len(t.routers) == 1, "one router for one stream", SCALED_S)

    check(SteadyCalls(scaled, CALLS[:1], pauses=0).during(wait_for_one_router), expected[:1])
    idle = scaled.until_settled(1, 1, SCALED_S)
    assert (idle.last_change.kind, idle.last_change.outcome) == ("scale", "live")
    assert idle.generation > full.generation
