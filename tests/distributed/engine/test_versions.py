"""Two versions of the weights side by side: every answer is that of one of them alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_deployment import Finished, LocalDeployment, Settings
from tiny_checkpoints import Family, Kind, make_tiny_checkpoint

from expertmesh.engine.request import Request, RequestKey, SamplingParams

LAST_BROKEN = 12
"""No generation behind this one is broken: each costs a formation, with weights of both versions."""


@pytest.fixture(scope="module", params=["v3", "v4"])
def kind(request: pytest.FixtureRequest) -> Kind | Family:
    """Of both versions."""
    chosen: Kind | Family = request.param
    return chosen


@pytest.fixture(scope="module")
def replacement(tmp_path_factory: pytest.TempPathFactory, kind: Kind | Family) -> Path:
    """Other weights of the same architecture as the tiny checkpoint."""
    return make_tiny_checkpoint(kind, tmp_path_factory.mktemp(f"other-{kind}"), seed=7)


def requests(version: int) -> list[Request]:
    """The same prompts for both versions, under different names."""
    return [
        Request(
            RequestKey(f"v{version}-{i}"),
            tuple((5 * i + 3 * t) % 97 for t in range(6 + 9 * i)),
            SamplingParams(max_tokens=12 + i, temperature=0.8 * (i % 2), seed=i, logprobs=1),
            weights=version,
        )
        for i in range(4)
    ]


def mixed() -> list[Request]:
    """Both versions' requests in turns."""
    return [request for pair in zip(requests(1), requests(2), strict=True) for request in pair]


@pytest.mark.parametrize("shape", [(2, 3), (1, 0)], ids=["2x3", "fused"])
def test_two_versions_side_by_side(
    tiny_checkpoint: Callable[[Kind | Family], Path],
    kind: Kind | Family,
    replacement: Path,
    shape: tuple[int, int],
) -> None:
    settings = Settings(tiny_checkpoint(kind), *shape, max_step_tokens=16, tile_rows=8)
    alone: dict[str, Finished] = {}
    logits: list[dict[tuple[str, int], torch.Tensor]] = [{} for _ in range(shape[0])]
    for version, checkpoint in ((1, settings.checkpoint), (2, replacement)):
        asked = [replace(request, weights=1) for request in requests(version)]
        with LocalDeployment(replace(settings, checkpoint=checkpoint)) as deployment:
            answers = deployment.run(asked, lambda i: i % shape[0])
        alone |= {request.key.request_id: answer for request, answer in zip(asked, answers, strict=True)}
        for router, seen in zip(deployment.routers, logits, strict=True):
            seen.update(router.sampler.logits)
    assert alone["v1-3"] != alone["v2-3"]

    both = replace(settings, moves_experts=True, replacement=replacement)
    with LocalDeployment(both) as reloading:
        with reloading._changed:
            assert reloading._changed.wait_for(lambda: reloading.n_switches >= 1, 60)
        # One of each pair goes to each router, as it did alone.
        got = reloading.run(mixed(), lambda i: i // 2 % shape[0])
        assert reloading._failures == []
    for request, answer in zip(mixed(), got, strict=True):
        assert answer == alone[request.key.request_id], request.key
    for router, expected in zip(reloading.routers, logits, strict=True):
        assert router.sampler.logits.keys() == expected.keys()
        for place, logits_V in expected.items():
            assert torch.equal(logits_V, router.sampler.logits[place]), place
        assert router.blocks.n_used == 0


def test_broken_steps_of_either_version_run_again(
    tiny_checkpoint: Callable[[Kind | Family], Path], kind: Kind | Family, replacement: Path
) -> None:
    settings = Settings(
        tiny_checkpoint(kind), max_step_tokens=16, tile_rows=8, moves_experts=True, replacement=replacement
    )

    def both_live(deployment: LocalDeployment) -> None:
        with deployment._changed:
            assert deployment._changed.wait_for(lambda: deployment.n_switches >= 1, 60)

    with LocalDeployment(settings) as undisturbed:
        both_live(undisturbed)
        expected = undisturbed.run(mixed())
        # Some generations live for a step of both versions or two: each is a header, then two collectives
        # for each version and layer.
        span = 2 * (1 + 4 * len(undisturbed.spec.moe_layers))

    def plan(number: int) -> int | None:
        return None if number % 2 or number > LAST_BROKEN else 3 + number % span

    with LocalDeployment(settings, plan) as disturbed:
        both_live(disturbed)
        assert disturbed.run(mixed()) == expected
        assert disturbed._failures
