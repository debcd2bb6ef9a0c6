"""Deterministic mode: a token's logits depend on the tokens before it, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from local_deployment import LocalDeployment, Settings
from torch import Tensor

from expertmesh.engine.request import Request, RequestKey, SamplingParams

PROMPT = tuple((5 * t * t + 3 * t) % 4093 for t in range(75))


def request(name: str, prompt: tuple[int, ...], n: int = 6) -> Request:
    params = SamplingParams(max_tokens=n, temperature=0.7, seed=5, prompt_logprobs=0)
    return Request(RequestKey(name), prompt, params)


def others(n: int) -> list[Request]:
    return [request(f"other {i}", PROMPT[i : 7 + 2 * i], n=3 + i % 5) for i in range(n)]


def logits_of(settings: Settings, n_others: int = 0) -> dict[int, Tensor]:
    """The logits at every position of the probed sequence, by position."""
    with LocalDeployment(settings) as deployment:
        requests = [*others(n_others // 2), request("probe", PROMPT), *others(n_others)[n_others // 2 :]]
        deployment.run(requests, router=lambda i: i % settings.n_routers)
        probed = (n_others // 2) % settings.n_routers
        logits = deployment.routers[probed].sampler.logits
        return {position: row for (name, position), row in logits.items() if name == "probe"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_logits_are_bit_equal_however_they_are_computed(dtype: torch.dtype, demo_checkpoint: Path) -> None:
    def settings(
        chunk_tokens: int = 2048, n_hosts: int = 1, n_routers: int = 1, n_redundant: int = 0
    ) -> Settings:
        return Settings(
            demo_checkpoint,
            n_routers=n_routers,
            n_hosts=n_hosts,
            n_redundant=n_redundant,
            dtype=dtype,
            tile_rows=16,
            max_step_tokens=chunk_tokens,
            n_blocks=1024,
        )

    whole = logits_of(settings())
    assert sorted(whole) == list(range(len(PROMPT) + 5))
    variants = {
        "chunks of 1": logits_of(settings(chunk_tokens=1)),
        "chunks of 3": logits_of(settings(chunk_tokens=3)),
        "chunks of 7": logits_of(settings(chunk_tokens=7)),
        "three hosts": logits_of(settings(n_hosts=3)),
        "three hosts with two copies of many experts": logits_of(
            settings(n_hosts=3, n_redundant=24), n_others=7
        ),
        "fused": logits_of(settings(n_hosts=0)),
        "a batch of 32": logits_of(settings(), n_others=31),
        "a batch of 32 in chunks on 2 routers and 3 hosts": logits_of(
            settings(chunk_tokens=64, n_hosts=3, n_routers=2), n_others=31
        ),
    }
    for name, logits in variants.items():
        assert sorted(logits) == sorted(whole), name
        for position, row in whole.items():
            assert torch.equal(logits[position], row), f"{name}: position {position} differs"
