"""Scaling and rebalancing while requests run: no stream fails, none differs by a token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from serve_clients import Answer, Call
from serve_cluster import Deployment, ServeCluster
from steady_calls import COALESCING, SteadyCalls, check, make_calls

from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb

CALLS = make_calls(6, first_tokens=40, more_tokens=5)


@pytest.fixture(scope="module")
def live(
    cluster: ServeCluster, demo_config: Callable[..., DeploymentConfig], own_checkpoint: Path
) -> Iterator[Deployment]:
    """1 router and 2 hosts with a quarter of the slots redundant, in deterministic mode."""
    config = demo_config(
        "name=live",
        COALESCING,
        f"model.path={own_checkpoint}",
        "engine.deterministic=true",
        "experts.redundant_slots=4",
        "change.retry_s=1",
        "balance.window_s=5",
        "balance.min_rows=1024",
    )
    with cluster.deploy(config) as [deployment]:
        yield deployment


def under_load(deployment: Deployment, act: Callable[[], None]) -> list[tuple[int, Answer]]:
    """The answers to calls that ran while `act` did."""
    return SteadyCalls(deployment, CALLS).during(act)


@pytest.fixture(scope="module")
def expected(live: Deployment) -> list[list[int]]:
    """The tokens of every call when nothing changes."""
    live.until_settled(1, 2)
    return SteadyCalls(live, CALLS).alone()


def test_scaling_by_the_dashboard_harms_no_stream(live: Deployment, expected: list[list[int]]) -> None:
    def scale() -> None:
        for deployment, n, size in (
            ("experts", 4, (1, 4)),
            ("experts", 1, (1, 1)),
            ("router", 2, (2, 1)),
            ("experts", 2, (2, 2)),
            ("router", 1, (1, 2)),
        ):
            live.scale_by_dashboard(deployment, n)
            change = live.until_settled(*size).last_change
            assert (change.kind, change.outcome) == ("scale", "live"), change

    before = live.until_settled(1, 2).generation
    check(under_load(live, scale), expected)
    # Members that come or go together do so in one change; a slow start may part those that come.
    assert before + 5 <= live.topology().generation <= before + 8


@pytest.mark.parametrize(
    ("what", "replicas", "words"),
    [
        ("experts", 0, "at least 1 expert host"),
        ("experts", 5000, "experts"),
        ("routers", 0, "at least 1 router"),
        ("gateways", 1, "gateways"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    live: Deployment, what: str, replicas: int, words: str
) -> None:
    before = live.until_settled(1, 2)
    with pytest.raises(grpc.RpcError) as refused:
        live.cluster_call("Scale", pb.ScaleRequest(what=what, replicas=replicas))
    assert refused.value.code() in (
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert words in refused.value.details()
    assert live.topology().generation == before.generation


def test_hosts_for_nobody_are_not_taken_away_by_the_dashboard(
    live: Deployment, expected: list[list[int]]
) -> None:
    """Serve obeys its endpoint; the coordinator sets the number back, and requests go on."""
    before = live.until_settled(1, 2)
    gone = {m.incarnation for m in before.experts}

    def scale() -> None:
        live.scale_by_dashboard("experts", 0)
        live.until(
            lambda t: len(t.experts) == 2 and not gone & {m.incarnation for m in t.experts},
            "other hosts have taken over",
        )

    check(under_load(live, scale), expected)
    live.until_settled(1, 2)


def test_a_change_that_cannot_be_loaded_is_rolled_back(
    live: Deployment, expected: list[list[int]], own_checkpoint: Path
) -> None:
    live.until_settled(1, 2)
    [weights] = own_checkpoint.glob("*.safetensors")
    hidden = weights.with_suffix(".hidden")

    def scale() -> None:
        weights.rename(hidden)
        try:
            live.scale_by_dashboard("experts", 1)
            change = live.until(lambda t: t.last_change.outcome == "rolled back", "rolled back").last_change
            assert "failed to prepare" in change.reason
            assert weights.name in change.reason
            assert len(live.topology().experts) == 2, "the host that leaves still serves"
        finally:
            hidden.rename(weights)
        live.until_settled(1, 1)
        live.scale_by_dashboard("experts", 2)
        live.until_settled(1, 2)

    check(under_load(live, scale), expected)


def test_a_rebalance_evens_out_a_skewed_load(live: Deployment) -> None:
    """Prompts of one kind: the busiest host's rows over the mean, by the routers' own counts."""
    call = Call((3663, 1070) * 40, 4)

    async def skewed() -> None:
        async with live.clients() as clients:
            await asyncio.gather(*(clients.grpc_stream(call, lambda n_tokens: True) for _ in range(8)))

    def measured() -> float:
        # The last token of an answer is not computed further.
        n_tokens = live.topology().routers[0].tokens + 3 * 8 * (len(call.prompt) + call.max_tokens - 1)
        for _ in range(3):
            asyncio.run(skewed())
        return live.until(lambda t: t.routers[0].tokens >= n_tokens, "all is counted").imbalance

    live.until_settled(1, 2)
    skew = measured()
    assert skew > 1.2, "the load must be skewed for there to be anything to see"
    before = live.topology().generation
    assert live.cluster_call("Rebalance", pb.RebalanceRequest()).begun
    after = live.until(lambda t: t.generation > before and not t.HasField("change"), "rebalanced")
    assert (after.last_change.kind, after.last_change.outcome) == ("rebalance", "live")
    assert measured() <= 1.15
