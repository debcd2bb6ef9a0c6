"""What is asked of every engine: token-id prompts of fixed lengths, drawn from a fixed seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from serving_bench.engine import Prompt

SEED = 7
LONG_PROMPT_TOKENS = 1024
LONG_CASE_CONCURRENCY = 8
MIN_REQUESTS_A_TURN = 4
FIRST_ORDINARY_TOKEN = 3
"""Prompts are drawn above the special tokens."""


@dataclass(frozen=True, slots=True)
class Case:
    """One column of the table."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int

    @property
    def n_waves(self) -> int:
        """Waves a turn: few requests at once are repeated, or a turn would be too short to measure."""
        return max(1, MIN_REQUESTS_A_TURN // self.concurrency)


def protocol_cases(
    concurrency: tuple[int, ...], prompt_tokens: tuple[int, ...], output_tokens: int
) -> tuple[Case, ...]:
    """The cases to measure; no prompt length given means the protocol's: 32, and one case with 1,024."""
    if prompt_tokens:
        return tuple(Case(length, output_tokens, c) for length in prompt_tokens for c in concurrency)
    short = tuple(Case(32, output_tokens, c) for c in concurrency)
    long_concurrency = LONG_CASE_CONCURRENCY if LONG_CASE_CONCURRENCY in concurrency else concurrency[0]
    return (*short, Case(LONG_PROMPT_TOKENS, output_tokens, long_concurrency))


def draw_prompts(n: int, length: int, vocab_size: int, *, key: str) -> list[Prompt]:
    """Random prompts; the same key gives the same prompts, so that all engines see the same."""
    generator = random.Random(f"{SEED}/{key}")

    def draw_one() -> Prompt:
        return tuple(generator.randrange(FIRST_ORDINARY_TOKEN, vocab_size) for _ in range(length))

    return [draw_one() for _ in range(n)]
