"""Many streams at once, a third of them cancelled at random moments: nobody else notices."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from serve_clients import Answer, Call, Clients, random_prompt
from serve_cluster import Deployment

from expertmesh.proto.v1 import inference_pb2 as pb

N_STREAMS = 200
VOCAB = 4096
LATEST_CANCEL_S = 4.0


@dataclass(frozen=True)
class Plan:
    """One stream."""

    call: Call
    over_http: bool
    cancelled_after_s: float | None


def make_plans() -> list[Plan]:
    draw = random.Random(11)
    plans = []
    for i in range(N_STREAMS):
        cancelled = i % 3 == 0
        call = Call(
            prompt=random_prompt(draw.randint(1, 90), VOCAB, seed=i),
            max_tokens=1500 if cancelled else draw.randint(1, 50),
            temperature=draw.choice((0.0, 0.9)),
            seed=i,
        )
        plans.append(
            Plan(call, draw.random() < 0.5, draw.uniform(0, LATEST_CANCEL_S) if cancelled else None)
        )
    return plans


async def run(clients: Clients, plan: Plan) -> Answer | None:
    """The answer; None when it was cancelled first."""
    face = clients.http_stream if plan.over_http else clients.grpc_stream
    try:
        async with asyncio.timeout(plan.cancelled_after_s):
            return await face(plan.call)
    except TimeoutError:
        return None


def test_cancelled_streams_leave_the_others_and_the_cache_alone(deterministic_1x2: Deployment) -> None:
    plans = make_plans()
    whole = [plan for plan in plans if plan.cancelled_after_s is None]

    async def all_at_once(chosen: list[Plan]) -> list[Answer | None]:
        async with deterministic_1x2.clients() as clients:
            return await asyncio.gather(*(run(clients, plan) for plan in chosen))

    async def with_cancellations() -> tuple[list[Answer | None], int]:
        streams = asyncio.create_task(all_at_once(plans))
        most_used = 0
        while not streams.done():
            topology = await asyncio.to_thread(deterministic_1x2.topology)
            most_used = max(most_used, *(router.cache_blocks_used for router in topology.routers))
            await asyncio.wait({streams}, timeout=0.5)
        return await streams, most_used

    n_blocks = deterministic_1x2.topology().routers[0].cache_blocks
    disturbed, most_used = asyncio.run(with_cancellations())
    assert most_used > n_blocks / 2, "the cache was in use, and too small for all at once"
    assert_free(deterministic_1x2)
    undisturbed = asyncio.run(all_at_once(whole))
    assert_free(deterministic_1x2)

    assert {plan.over_http for plan in whole} == {True, False}
    n_cancelled = sum(answer is None for answer in disturbed)
    assert n_cancelled == N_STREAMS - len(whole) == -(-N_STREAMS // 3)
    kept = [answer for plan, answer in zip(plans, disturbed, strict=True) if plan.cancelled_after_s is None]
    for plan, answer, expected in zip(whole, kept, undisturbed, strict=True):
        assert answer is not None
        assert expected is not None
        assert len(answer.token_ids) == plan.call.max_tokens
        assert answer.finish_reason == "length"
        assert answer.token_ids == expected.token_ids


def assert_free(deployment: Deployment) -> None:
    """No request is open, and no block of any router's cache is held."""

    def free(topology: pb.Topology) -> bool:
        assert all(router.cache_blocks > 0 for router in topology.routers)
        return not any(router.cache_blocks_used for router in topology.routers)

    deployment.until_quiet()
    deployment.until(free, "every block is free")
