"""A step is a transaction: abandoned after any collective and run again, nothing differs by a bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from local_deployment import LocalDeployment, Settings
from tiny_checkpoints import FAMILIES, KINDS, Family, Kind

from expertmesh.engine.request import Request, RequestKey, SamplingParams

N_REQUESTS = 3


def requests() -> list[Request]:
    """Greedy and sampled, with penalties and logprobs, of unequal lengths."""
    return [
        Request(
            RequestKey(f"r{i}"),
            tuple((7 * i + 3 * t) % 97 for t in range(9 + 11 * i)),
            SamplingParams(
                max_tokens=5 + i,
                temperature=0.0 if i == 0 else 0.9,
                seed=11 * i,
                repetition_penalty=1.3 if i == 2 else 1.0,
                frequency_penalty=0.5 if i == 2 else 0.0,
                logprobs=2,
                prompt_logprobs=1,
            ),
        )
        for i in range(N_REQUESTS)
    ]


def abort_after_each(n_collectives_a_step: int) -> Callable[[int], int | None]:
    """Every collective of a step in turn, then one that lets whole steps pass, over and over."""
    last = 2 * n_collectives_a_step + 1

    def plan(generation: int) -> int | None:
        return 1 + (generation - 1) % last if generation <= 2 * last else None

    return plan


@pytest.mark.parametrize("kind", [*KINDS, *(f for f in FAMILIES if f != "llama"), "demo"])
def test_an_interrupted_step_leaves_no_trace(
    kind: Kind | str,
    tiny_checkpoint: Callable[[Kind], Path],
    demo_checkpoint: Path,
) -> None:
    checkpoint = demo_checkpoint if kind == "demo" else tiny_checkpoint(kind)  # type: ignore[arg-type]
    check(checkpoint, drafts=0)


@pytest.mark.parametrize("kind", ["demo", "v4"])
def test_an_interrupted_step_with_drafts_leaves_no_trace(
    kind: str, draft_checkpoint: Callable[..., Path], demo_checkpoint: Path
) -> None:
    check(demo_checkpoint if kind == "demo" else draft_checkpoint(kind, agreeable=True), drafts=2)


def check(checkpoint: Path, drafts: int) -> None:
    """Compares a deployment that is abandoned over and over with one that is left alone."""
    settings = Settings(checkpoint, max_step_tokens=24, tile_rows=8, drafts=drafts)
    with LocalDeployment(settings) as undisturbed:
        expected = undisturbed.run(requests())
        n_moe_layers = len(undisturbed.spec.moe_layers)
    # The drafter's layer comes once more for each draft behind the first.
    plan = abort_after_each(1 + 2 * (n_moe_layers + max(drafts - 1, 0)))
    with LocalDeployment(settings, plan) as disturbed:
        got = disturbed.run(requests())

    assert disturbed.generation > 2 * n_moe_layers, "the plan must have struck in every collective"
    assert got == expected
    for pool, (want, have) in enumerate(
        zip(undisturbed.routers[0].cache.tensors, disturbed.routers[0].cache.tensors, strict=True)
    ):
        assert torch.equal(want, have), f"pool {pool} of the cache differs"
    assert disturbed.routers[0].sampler.logits.keys() == undisturbed.routers[0].sampler.logits.keys()
    for place, logits_V in undisturbed.routers[0].sampler.logits.items():
        assert torch.equal(logits_V, disturbed.routers[0].sampler.logits[place]), place
    assert disturbed.routers[0].blocks.n_used == disturbed.routers[0].windows.n_used == 0


BORDER_FAMILIES = ("v3.2", "v4", "gpt-oss")
"""Those whose caches have windows, selections or rows of many tokens."""


@pytest.mark.parametrize("family", BORDER_FAMILIES)
def test_steps_that_break_across_borders_leave_no_trace(
    family: Family, tiny_checkpoint: Callable[[Family], Path]
) -> None:
    """Every generation is lost within its first steps, in another collective, from the first token of long
    prompts to the last of their answers: across windows, blocks and rows of 4 and of 128 tokens."""
    settings = Settings(
        tiny_checkpoint(family), block_tokens=128, n_blocks=16, max_step_tokens=40, tile_rows=8
    )
    asked = [
        Request(
            RequestKey(f"r{i}"),
            tuple((7 * i + 3 * t) % 97 for t in range(length)),
            SamplingParams(max_tokens=9, temperature=0.8, seed=i, logprobs=2),
        )
        for i, length in enumerate((121, 250))
    ]
    with LocalDeployment(settings) as undisturbed:
        expected = undisturbed.run(asked)
        n_collectives = 1 + 2 * len(undisturbed.spec.moe_layers)
    within = 3 * n_collectives  # Shares no factor with 11, so that every collective of three steps is met.
    with LocalDeployment(settings, lambda generation: 1 + generation * 11 % within) as disturbed:
        got = disturbed.run(asked)
    assert disturbed.generation > 8, "generations must have been lost all the way"
    assert got == expected
    assert disturbed.routers[0].blocks.n_used == disturbed.routers[0].windows.n_used == 0
