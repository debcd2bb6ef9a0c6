"""Families beside DeepSeek-V3 on the running cluster: losses on V4 and Mixtral, a dense model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from parity_checks import check_answer
from serve_clients import Answer, Call, random_prompt
from serve_cluster import Deployment, ServeCluster
from steady_calls import CHUNKS_PER_S, SteadyCalls
from steady_calls import check as check_steady
from tiny_checkpoints import VOCAB, Family, load_reference, reference_logits
from tiny_deployment import tiny_config

from expertmesh.configs.schema import EngineConfig, GatewayConfig

PROMPT_LENGTHS = (1, 9, 150, 31, 330, 64, 127, 17)
MAX_TOKENS = 12
STEP_TOKENS = 56


def check(deployment: Deployment, folder: Path) -> None:
    prompts = [random_prompt(length, VOCAB, length) for length in PROMPT_LENGTHS]

    async def all_at_once() -> list[Answer]:
        async with deployment.clients() as clients:
            calls = (
                clients.grpc_stream(Call(prompt, MAX_TOKENS, logprobs=True, prompt_logprobs=True))
                for prompt in prompts
            )
            return await asyncio.gather(*calls)

    reference = load_reference(folder)
    for prompt, answer in zip(prompts, asyncio.run(all_at_once()), strict=True):
        assert len(answer.token_ids) == MAX_TOKENS
        reference_TV = reference_logits(reference, [*prompt, *answer.token_ids])
        check_answer(prompt, answer.token_ids, answer.logprobs, answer.prompt_logprobs, reference_TV)


def test_a_dense_model_has_no_expert_hosts(
    cluster: ServeCluster, tiny_checkpoint: Callable[[Family], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_checkpoint("llama")
    with cluster.deploy(tiny_config("dense", folder, 2, 2, STEP_TOKENS)) as (deployment,):
        assert "dense model: experts.replicas is 2 and is ignored" in caplog.text
        check(deployment, folder)
        topology = deployment.topology()
        assert (len(topology.routers), len(topology.experts)) == (2, 0)


@pytest.mark.parametrize("family", ["v4", "mixtral"])
def test_lost_and_added_processes_cost_no_stream_a_token(
    family: Family, cluster: ServeCluster, tiny_checkpoint: Callable[[Family], Path]
) -> None:
    settings = tiny_config(f"steady-{family}", tiny_checkpoint(family), 2, 2, STEP_TOKENS)
    settings = settings.model_copy(
        update={
            "engine": EngineConfig(kv_cache_tokens=8192, deterministic=True, tile_rows=8),
            "gateway": GatewayConfig(stream_chunks_per_s=CHUNKS_PER_S),
        }
    )
    calls = [
        Call(random_prompt(5 + 60 * i, VOCAB, seed=i), 70 + 10 * i, temperature=0.8 * (i % 2), seed=i)
        for i in range(4)
    ]
    with cluster.deploy(settings) as (deployment,):
        deployment.until_settled(2, 2)
        steady = SteadyCalls(deployment, calls)
        expected = steady.alone()

        def strike() -> None:
            before = deployment.topology()
            os.kill(before.experts[-1].pid, signal.SIGKILL)
            os.kill(before.routers[0].pid, signal.SIGKILL)
            deployment.until(lambda t: t.generation > before.generation, "a generation without them")
            deployment.until_settled(2, 2)
            deployment.scale_by_dashboard("experts", 3)
            deployment.until_settled(2, 3)

        check_steady(steady.during(strike), expected)
