"""Two routers share two expert hosts: a long prompt on one does not stall the other."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time

from serve_cluster import Answer, Call, Deployment, random_prompt

N_PREFILLS = 8
LONG_TOKENS = 2000
DECODE_TOKENS = 1900
VOCAB = 4096


def test_a_long_prefill_keeps_the_other_routers_gap_within_the_step_budget(fast_2x2: Deployment) -> None:
    tokens_before = {m.incarnation: m.tokens for m in fast_2x2.topology().routers}
    decode, spans = asyncio.run(prefill_beside_a_stream(fast_2x2))

    arrivals = list(itertools.pairwise(decode.times_s))
    for begin_s, end_s in spans:
        n_steps = sum(begin_s < arrival_s <= end_s for arrival_s in decode.times_s)
        assert n_steps > 2, "the prompt is computed in chunks, and the stream goes on between them"
    gaps_ms = [1e3 * (later_s - earlier_s) for earlier_s, later_s in arrivals]
    p99_ms = statistics.quantiles(gaps_ms, n=100, method="inclusive")[-1]
    assert p99_ms <= fast_2x2.config.scheduler.step_budget_ms, sorted(gaps_ms)[-10:]

    topology = fast_2x2.until(
        lambda t: (
            sum(m.tokens - tokens_before[m.incarnation] for m in t.routers) > N_PREFILLS * LONG_TOKENS
        ),
        "the routers have reported",
    )
    computed = sorted(m.tokens - tokens_before[m.incarnation] for m in topology.routers)
    assert computed[0] < LONG_TOKENS < N_PREFILLS * LONG_TOKENS <= computed[1], "each had its own work"


async def prefill_beside_a_stream(deployment: Deployment) -> tuple[Answer, list[tuple[float, float]]]:
    """A stream on one router while the other computes long prompts; (begin, end) of each of those."""
    async with deployment.clients() as clients:
        flowing, enough = asyncio.Event(), asyncio.Event()

        def on_tokens(n_tokens: int) -> bool:
            flowing.set()
            return not enough.is_set()

        decode = asyncio.create_task(
            clients.grpc_stream(Call(random_prompt(8, VOCAB, 0), DECODE_TOKENS), on_tokens)
        )
        await flowing.wait()
        spans = []
        for seed in range(1, N_PREFILLS + 1):
            begin_s = time.monotonic()
            # The stream's router has a request, so this goes to the other.
            await clients.grpc_whole(Call(random_prompt(LONG_TOKENS, VOCAB, seed), 1))
            spans.append((begin_s, time.monotonic()))
        enough.set()
        answer = await decode
    assert answer.finish_reason == "", "it was still running"
    return answer, spans
