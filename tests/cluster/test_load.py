"""What a running deployment tells of its load: what was routed lately, by expert and by host."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from serve_clients import Call, random_prompt
from serve_cluster import Deployment

from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

N_REQUESTS = 4
VOCAB = 4096


def expert_load(deployment: Deployment) -> pb.ExpertLoad:
    with grpc.insecure_channel(deployment.grpc_address) as channel:
        return rpc.ClusterStub(channel).GetExpertLoad(
            pb.GetExpertLoadRequest(), timeout=10, metadata=deployment.metadata
        )


async def generate(deployment: Deployment) -> None:
    async with deployment.clients() as clients:
        calls = [Call(random_prompt(32, VOCAB, seed), 16) for seed in range(N_REQUESTS)]
        await asyncio.gather(*(clients.grpc_whole(call) for call in calls))


def test_routers_tell_what_they_sent_to_experts_and_hosts(deterministic_1x2: Deployment) -> None:
    before = deterministic_1x2.topology().routers[0].tokens
    asyncio.run(generate(deterministic_1x2))
    n_tokens = N_REQUESTS * (32 + 15)
    topology = deterministic_1x2.until(
        lambda t: t.routers[0].tokens >= before + n_tokens, "the router has reported"
    )
    load = expert_load(deterministic_1x2)
    assert load.generation == topology.generation
    of_hosts = [0, 0]
    for layer in load.layers:
        assert len(layer.window_host_tokens) == 2
        assert sum(layer.window_tokens) == sum(load.layers[0].window_tokens) >= 4 * n_tokens
        assert sum(layer.window_host_tokens) >= 4 * n_tokens, "every token goes to four experts"
        assert all(w <= t for w, t in zip(layer.window_tokens, layer.tokens, strict=True))
        of_hosts = [a + b for a, b in zip(of_hosts, layer.window_host_tokens, strict=True)]
    assert topology.imbalance == pytest.approx(2 * max(of_hosts) / sum(of_hosts))
    assert 1.0 <= topology.imbalance < 2.0
