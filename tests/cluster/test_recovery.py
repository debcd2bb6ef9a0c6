"""A member dies under load: the streams go on, token for token, and it is replaced."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from serve_clients import Answer, Call, random_prompt
from serve_cluster import Deployment

N_STREAMS = 12
MAX_TOKENS = 120
VOCAB = 4096
CALLS = [
    Call(random_prompt(5 + 9 * i, VOCAB, seed=i), MAX_TOKENS, temperature=0.8 * (i % 2), seed=i)
    for i in range(N_STREAMS)
]


async def generate(deployment: Deployment, flowing: asyncio.Event | None = None) -> list[Answer]:
    """All calls at once; `flowing` is set when each has some of its tokens."""
    n_begun: set[int] = set()

    def on_tokens(index: int, n_tokens: int) -> bool:
        if n_tokens > 3:
            n_begun.add(index)
        if flowing is not None and len(n_begun) == N_STREAMS:
            flowing.set()
        return True

    async with deployment.clients() as clients:
        faces = (clients.grpc_stream, clients.http_stream)
        return await asyncio.gather(
            *(
                faces[i % 2](call, lambda n_tokens, i=i: on_tokens(i, n_tokens))
                for i, call in enumerate(CALLS)
            )
        )


@pytest.mark.parametrize("role", ["experts", "routers"])
def test_a_killed_member_costs_no_stream_a_token(role: str, deterministic_1x2: Deployment) -> None:
    before = deterministic_1x2.until_complete()
    victim = getattr(before, role)[-1]

    async def kill_under_load() -> list[Answer]:
        flowing = asyncio.Event()
        streams = asyncio.create_task(generate(deterministic_1x2, flowing))
        await flowing.wait()
        os.kill(victim.pid, signal.SIGKILL)
        assert not streams.done()
        return await streams

    disturbed = asyncio.run(kill_under_load())
    after = deterministic_1x2.until_complete(above=before.generation)
    members = {member.incarnation for member in (*after.routers, *after.experts)}
    survivors = {member.incarnation for member in (*before.routers, *before.experts)} - {victim.incarnation}
    assert survivors < members
    assert victim.incarnation not in members
    undisturbed = asyncio.run(generate(deterministic_1x2))
    assert [answer.token_ids for answer in disturbed] == [answer.token_ids for answer in undisturbed]
    assert {len(answer.token_ids) for answer in disturbed} == {MAX_TOKENS}
    assert {answer.finish_reason for answer in disturbed} == {"length"}
