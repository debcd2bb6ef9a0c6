"""Drafts change nothing but the number of steps: answers are those without, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from draft_checkpoints import DraftKind
from local_deployment import Finished, LocalDeployment, Settings
from serve_clients import random_prompt

from expertmesh.engine.request import Request, RequestKey, SamplingParams

N_REQUESTS = 5


def requests(vocab_size: int, n_prompt: int) -> list[Request]:
    """Greedy and sampled, with penalties, logprobs, least lengths and stops; of unequal lengths."""
    options = [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.9, "logprobs": 2},
        {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"temperature": 0.7, "min_tokens": 12, "stop_token_ids": frozenset(range(0, vocab_size, 9))},
        {"temperature": 1.0, "stop_token_ids": frozenset(range(0, vocab_size, 20)), "prompt_logprobs": 1},
    ]
    return [
        Request(
            RequestKey(f"r{i}"),
            tuple(random_prompt(n_prompt + 7 * i, vocab_size, i)),
            SamplingParams(max_tokens=20 + 3 * i, seed=100 + i, **options[i]),  # type: ignore[arg-type]
        )
        for i in range(N_REQUESTS)
    ]


def answers(settings: Settings, wanted: list[Request]) -> list[Finished]:
    with LocalDeployment(settings) as deployment:
        answers = deployment.run(wanted, router=lambda i: i % settings.n_routers)
        for router in deployment.routers:
            assert router.blocks.n_used == router.windows.n_used == 0
    return answers


@pytest.mark.parametrize("kind", ["demo", "v3.2", "glm4-moe", "v4"])
def test_answers_are_those_without_drafts(
    kind: DraftKind | str, draft_checkpoint: Callable[..., Path], demo_checkpoint: Path
) -> None:
    folder = demo_checkpoint if kind == "demo" else draft_checkpoint(kind, agreeable=True)
    # Longer than every window and compressed row of the models.
    wanted = requests(4096 if kind == "demo" else 128, 285 if kind == "v4" else 30)
    settings = Settings(folder, n_hosts=0, tile_rows=8, n_blocks=1024)
    expected = answers(settings, wanted)
    for n_routers, n_hosts, drafts in ((1, 0, 1), (1, 2, 3), (2, 3, 2)):
        got = answers(
            Settings(
                folder, n_routers=n_routers, n_hosts=n_hosts, tile_rows=8, n_blocks=1024, drafts=drafts
            ),
            wanted,
        )
        assert got == expected, (n_routers, n_hosts, drafts)
        n_drafts, n_accepted = (
            sum(getattr(one, what) for one in got) for what in ("draft_tokens", "accepted_tokens")
        )
        assert 0.15 * n_drafts < n_accepted < n_drafts
