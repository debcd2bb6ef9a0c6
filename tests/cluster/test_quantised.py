"""Quantised checkpoints and experts in int8 through the running cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from parity_checks import check_answer
from serve_clients import Answer, Call, random_prompt
from serve_cluster import Deployment, ServeCluster
from tiny_checkpoints import VOCAB, load_reference, reference_logits
from tiny_deployment import tiny_config

PROMPT_LENGTHS = (1, 9, 150, 31)
MAX_TOKENS = 8


async def ask(deployment: Deployment) -> list[tuple[tuple[int, ...], Answer]]:
    prompts = [random_prompt(length, VOCAB, length) for length in PROMPT_LENGTHS]
    calls = [Call(prompt, MAX_TOKENS, logprobs=True, prompt_logprobs=True) for prompt in prompts]
    async with deployment.clients() as clients:
        answers = await asyncio.gather(*(clients.grpc_whole(call) for call in calls))
    return list(zip(prompts, answers, strict=True))


def test_experts_as_stored_and_in_int8(
    cluster: ServeCluster, quantised_checkpoint: Callable[[str], Any]
) -> None:
    pair = quantised_checkpoint("v3-fp8")
    stored = tiny_config("fp8", pair.stored, 1, 2)
    int8 = tiny_config("int8", pair.plain, 1, 2, weights="int8")
    with cluster.deploy(stored, int8) as deployments:
        exact, near = (asyncio.run(ask(deployment)) for deployment in deployments)
    reference = load_reference(pair.plain)
    for prompt, answer in exact:
        check_answer(
            prompt,
            answer.token_ids,
            answer.logprobs,
            answer.prompt_logprobs,
            reference_logits(reference, [*prompt, *answer.token_ids]),
        )
    assert all(len(answer.token_ids) == MAX_TOKENS for _, answer in near)
    # Held otherwise: the same to the last digit would be the same experts.
    assert [answer.logprobs for _, answer in near] != [answer.logprobs for _, answer in exact]
