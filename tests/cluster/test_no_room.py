"""No room for every expert on the hosts that are left: requests wait for the host, or their deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import openai
import pytest
from serve_clients import Answer, Call, random_prompt
from serve_cluster import Deployment, ServeCluster

from expertmesh.configs.schema import DeploymentConfig

TIMEOUT_S = 5.0
CALL = Call(random_prompt(20, 4096, seed=1), 12)
LONG_CALL = Call(random_prompt(20, 4096, seed=2), 2000)
N_TRIES = 12


@pytest.fixture(scope="module")
def tight(
    cluster: ServeCluster, demo_config: Callable[..., DeploymentConfig], own_checkpoint: Path
) -> Iterator[Deployment]:
    """1 router and 2 hosts, each with room for half of the experts."""
    config = demo_config(
        "name=tight",
        f"model.path={own_checkpoint}",
        "experts.slots_per_host=8",
        "engine.deterministic=true",
        f"limits.request_timeout_s={TIMEOUT_S:g}",
    )
    with cluster.deploy(config) as [deployment]:
        yield deployment


def test_without_room_requests_are_unavailable_and_service_resumes_with_the_host(
    tight: Deployment, own_checkpoint: Path
) -> None:
    before = tight.until_settled(1, 2)
    hidden = own_checkpoint.with_name("hidden")

    async def scenario() -> None:
        async with tight.clients() as clients:
            expected = await clients.grpc_whole(CALL)
            flowing = asyncio.Event()

            def on_tokens(n_tokens: int) -> bool:
                flowing.set()
                return True

            running = asyncio.create_task(clients.grpc_stream(LONG_CALL, on_tokens))
            async with asyncio.timeout(TIMEOUT_S):
                await flowing.wait()
            own_checkpoint.rename(hidden)  # so that no other host comes in its place for now
            try:
                os.kill(before.experts[0].pid, signal.SIGKILL)
                await asyncio.to_thread(tight.until, lambda t: t.state == "waiting", "waiting for room")
                new = [asyncio.create_task(face(CALL)) for face in (clients.grpc_whole, clients.http_whole)]
                cut, refused, refused_http = await asyncio.gather(running, *new, return_exceptions=True)
                for error in (cut, refused):
                    assert isinstance(error, grpc.RpcError)
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                    assert "slots" in (error.details() or "")
                assert isinstance(refused_http, openai.APIStatusError)
                assert refused_http.status_code == 503
                assert refused_http.response.headers["retry-after"] == "1"
            finally:
                hidden.rename(own_checkpoint)
            assert (await until_answered(clients.http_whole)).token_ids == expected.token_ids
            assert await clients.grpc_whole(CALL) == expected

    asyncio.run(scenario())
    assert len(tight.until_settled(1, 2).experts) == 2


async def until_answered(face: Callable[..., object]) -> Answer:
    """As a client does that obeys Retry-After; 504 is for one that has waited for the host almost to its
    deadline, and had too little of it left for its tokens."""
    for _ in range(N_TRIES):
        try:
            answer = await face(CALL)  # type: ignore[misc]
        except openai.APIStatusError as error:
            if error.status_code not in (503, 504):
                raise
            await asyncio.sleep(float(error.response.headers.get("retry-after", 0)))
        else:
            assert isinstance(answer, Answer)
            return answer
    raise AssertionError(f"not answered within {N_TRIES} tries")
