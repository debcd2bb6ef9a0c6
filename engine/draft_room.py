"""How many drafts of a sequence a step verifies, and how many are made for the next. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.outcome import Limits
from expertmesh.engine.request import Sequence


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """Of one sequence in one step."""

    verified: tuple[int, ...] = ()
    wanted: int = 0
    end: int = 0
    """The step may write cache entries before this position."""


def plan_drafts(
    sequence: Sequence, blocks: BlockManager, limits: Limits, *, most: int, spare_rows: int
) -> DraftPlan:
    """What a sequence that samples in this step does with drafts; takes blocks for it as long as any are
    free, and is content with fewer drafts otherwise: nobody gives way for them.

    Args:
        most: drafts to be made.
        spare_rows: tokens that the step may still compute.
    """
    n_tokens = len(sequence.token_ids)
    left = limits.tokens_left(sequence)
    verified = sequence.drafts[: max(0, min(left - 1, spare_rows))]
    while not _reserve(sequence, blocks, n_tokens + len(verified)):
        verified = verified[:-1]
    wanted = most if left > 2 else 0
    # The second draft and those behind it are made at positions of their own.
    end = n_tokens + len(verified) + max(wanted - 1, 0)
    if wanted > 1 and (end > limits.max_context_tokens or not _reserve(sequence, blocks, end)):
        wanted, end = 1, n_tokens + len(verified)
    return DraftPlan(verified, wanted, end)


def _reserve(sequence: Sequence, blocks: BlockManager, n_tokens: int) -> bool:
    if blocks.blocks_for(n_tokens) - len(sequence.block_table) > blocks.n_free:
        return False
    sequence.block_table = blocks.grow(sequence.block_table, n_tokens)
    return True
