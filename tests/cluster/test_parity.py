"""Every architecture in every layout through the running cluster, against transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from parity_checks import check_answer
from serve_clients import Answer, Call, random_prompt
from serve_cluster import Deployment, ServeCluster
from tiny_checkpoints import FAMILIES, KINDS, VOCAB, Family, Kind, load_reference, reference_logits
from tiny_deployment import tiny_config
from torch import Tensor

MOE_FAMILIES = [family for family in FAMILIES if family != "llama"]
LAYOUTS = ((1, 2), (2, 3), (1, 1))
"""(routers, expert hosts), one after the other by scaling the deployment that runs."""
PROMPT_LENGTHS = (1, 2, 9, 150, 31, 64, 330, 5, 90, 127, 17, 3)
"""Across the borders of blocks, of windows and of every compression (4 and 128)."""
MAX_TOKENS = 12


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.xdist_group(f"parity-{f}")) for f in (*KINDS, *MOE_FAMILIES)],
)
def test_logprobs_and_greedy_tokens_are_those_of_transformers(
    family: Kind | Family, cluster: ServeCluster, tiny_checkpoint: Callable[[Kind | Family], Path]
) -> None:
    folder = tiny_checkpoint(family)
    reference = Reference(folder)
    with cluster.deploy(tiny_config(f"parity-{family.replace('.', '')}", folder, *LAYOUTS[0])) as (
        deployment,
    ):
        for n_routers, n_hosts in LAYOUTS:
            scale(deployment, n_routers, n_hosts)
            reference.check(deployment)
            topology = deployment.until(
                lambda t: all(member.tokens for member in (*t.routers, *t.experts)),
                "every member has computed",
            )
            ranks = [member.rank for member in (*topology.routers, *topology.experts)]
            assert ranks == list(range(n_routers + n_hosts))


def test_fused(cluster: ServeCluster, tiny_checkpoint: Callable[[Kind | Family], Path]) -> None:
    folders = {kind: tiny_checkpoint(kind) for kind in KINDS}
    configs = [tiny_config(f"fused-{kind}", folder, 1, 0) for kind, folder in folders.items()]
    with cluster.deploy(*configs) as deployments:
        for folder, deployment in zip(folders.values(), deployments, strict=True):
            Reference(folder).check(deployment)


def scale(deployment: Deployment, n_routers: int, n_hosts: int) -> None:
    topology = deployment.topology()
    if len(topology.routers) != n_routers:
        deployment.scale_by_dashboard("router", n_routers)
    if len(topology.experts) != n_hosts:
        deployment.scale_by_dashboard("experts", n_hosts)
    deployment.until_settled(n_routers, n_hosts)


class Reference:
    """Transformers' model of a checkpoint, asked once for each sequence."""

    def __init__(self, folder: Path) -> None:
        self._model = load_reference(folder)
        self._logits: dict[tuple[int, ...], Tensor] = {}

    def check(self, deployment: Deployment) -> None:
        """Asks for all prompts at once, through every face of the deployment in turn."""
        prompts = [random_prompt(length, VOCAB, length) for length in PROMPT_LENGTHS]
        answers = asyncio.run(_all_at_once(deployment, prompts))
        assert sum(bool(answer.prompt_logprobs) for answer in answers) >= len(prompts) / 2
        for prompt, answer in zip(prompts, answers, strict=True):
            assert len(answer.token_ids) == MAX_TOKENS
            assert answer.finish_reason == "length"
            expected_TV = self._logits_of((*prompt, *answer.token_ids))
            check_answer(prompt, answer.token_ids, answer.logprobs, answer.prompt_logprobs, expected_TV)

    def _logits_of(self, token_ids: tuple[int, ...]) -> Tensor:
        if token_ids not in self._logits:
            self._logits[token_ids] = reference_logits(self._model, list(token_ids))
        return self._logits[token_ids]


async def _all_at_once(deployment: Deployment, prompts: Iterable[tuple[int, ...]]) -> list[Answer]:
    async with deployment.clients() as clients:
        faces = (clients.grpc_stream, clients.http_whole, clients.grpc_whole, clients.http_stream)
        calls = []
        for i, prompt in enumerate(prompts):
            face = faces[i % len(faces)]
            # As with other servers, HTTP streams have no place for the prompt's.
            scored = face != clients.http_stream
            calls.append(face(Call(prompt, MAX_TOKENS, logprobs=True, prompt_logprobs=scored)))
        return await asyncio.gather(*calls)
