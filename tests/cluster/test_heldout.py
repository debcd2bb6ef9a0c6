"""The demo checkpoint scores through the API what its model card says."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from serve_clients import Answer, Call
from serve_cluster import Deployment
from tokenizers import Tokenizer

WINDOW = 512
MODEL_CARD_BITS_PER_BYTE = 1.278
CONCURRENCY = 8


def test_heldout_text_scores_what_the_model_card_says(fast_2x2: Deployment, demo_checkpoint: Path) -> None:
    text = (demo_checkpoint / "heldout.txt").read_text()
    ids = Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json")).encode(text).ids
    # Each window ends with a token that is only scored: the first of the next one.
    windows = [tuple(ids[start : start + WINDOW + 1]) for start in range(0, len(ids) - 1, WINDOW)]

    async def score() -> list[Answer]:
        free = asyncio.Semaphore(CONCURRENCY)
        async with fast_2x2.clients() as clients:
            faces = (clients.grpc_whole, clients.http_whole)

            async def one(index: int) -> Answer:
                async with free:
                    return await faces[index % 2](Call(windows[index], 1, prompt_logprobs=True))

            return await asyncio.gather(*(one(i) for i in range(len(windows))))

    answers = asyncio.run(score())
    scores = [logprob for answer in answers for logprob in answer.prompt_logprobs]
    assert len(scores) == len(ids) - 1
    bits_per_byte = -sum(scores) / math.log(2) / len(text.encode())
    assert bits_per_byte == pytest.approx(MODEL_CARD_BITS_PER_BYTE, rel=0.01)
