"""Speculation through a running deployment: the same answers in fewer steps, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from serve_cluster import Deployment, ServeCluster
from steady_calls import SteadyCalls, check, make_calls

from expertmesh.configs.schema import DeploymentConfig
from expertmesh.proto.v1 import inference_pb2 as pb

CALLS = make_calls(4, first_tokens=50, more_tokens=10)
N_OUT = 60


@pytest.fixture(scope="module")
def drafting(cluster: ServeCluster, demo_config: Callable[..., DeploymentConfig]) -> Iterator[Deployment]:
    """As `deterministic_1x2`, with drafts: always as many, so that their counts can be compared."""
    config = demo_config(
        "name=drafting",
        "engine.deterministic=true",
        "speculative.method=mtp",
        "speculative.tokens=2",
        "speculative.adaptive=false",
        "failure.report_s=2",
    )
    with cluster.deploy(config) as [deployment]:
        yield deployment


def test_drafts_change_no_answer_while_hosts_are_lost_and_come(
    drafting: Deployment, deterministic_1x2: Deployment
) -> None:
    expected = SteadyCalls(deterministic_1x2, CALLS).alone()
    before = drafting.until_settled(1, 2)

    def strike() -> None:
        os.kill(before.experts[-1].pid, signal.SIGKILL)
        drafting.until(
            lambda t: t.generation > before.generation and t.state == "running", "a generation without it"
        )
        drafting.until_settled(1, 2)
        drafting.scale_by_dashboard("experts", 3)
        drafting.until_settled(1, 3)

    check(SteadyCalls(drafting, CALLS).during(strike), expected)


def test_answers_and_figures_tell_of_drafts(drafting: Deployment) -> None:
    async def ask() -> tuple[pb.Usage, pb.Usage, object, object]:
        prompt = list(CALLS[0].prompt)
        params = pb.SamplingParams(max_tokens=N_OUT, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=prompt), params=params)
        async with drafting.clients() as clients:
            whole = await clients.inference.Generate(request, metadata=clients.metadata)
            chunks = [c async for c in clients.inference.GenerateStream(request, metadata=clients.metadata)]
            body = {
                "model": "",
                "prompt": prompt,
                "max_tokens": N_OUT,
                "temperature": 0,
                "extra_body": {"ignore_eos": True},
            }
            body["model"] = (await clients.openai.models.list()).data[0].id
            over_http = await clients.openai.completions.create(**body)
            stream = await clients.openai.completions.create(
                **body, stream=True, stream_options={"include_usage": True}
            )
            last = [chunk async for chunk in stream][-1]
        return whole.usage, chunks[-1].usage, over_http.usage, last.usage

    whole, streamed, over_http, http_streamed = asyncio.run(ask())
    assert whole == streamed
    assert over_http == http_streamed
    assert whole.completion_tokens == over_http.completion_tokens == N_OUT  # type: ignore[attr-defined]
    details = over_http.completion_tokens_details  # type: ignore[attr-defined]
    assert whole.accepted_prediction_tokens == details.accepted_prediction_tokens > 5
    assert whole.rejected_prediction_tokens == details.rejected_prediction_tokens > 0
    topology = drafting.until(lambda t: t.routers[0].accepted_tokens > 0, "figures of drafts")
    assert topology.routers[0].draft_tokens > topology.routers[0].accepted_tokens
