"""Tells the coordinator what a member has done, once a second while it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from expertmesh.cluster.member import MemberClient
from expertmesh.engine.profile import StepProfile

REPORT_S = 1.0


async def report_load(
    member: MemberClient,
    tokens: Callable[[], int],
    expert_rows: Callable[[], list[int]],
    profile: Callable[[], StepProfile],
    cache_blocks: Callable[[], tuple[int, int]] = lambda: (0, 0),
) -> None:
    """Runs until cancelled; sends nothing while the member is idle.

    Args:
        member: sends the figures.
        tokens, expert_rows, profile: totals since the start, see `MemberClient.report_load`.
        cache_blocks: routers: (held by sequences, all) blocks of the paged cache.
    """
    reported = (0, (0, 0))
    while True:
        await asyncio.sleep(REPORT_S)
        now = tokens(), cache_blocks()
        if now != reported:
            reported = now
            steps = profile()
            member.report_load(
                tokens=now[0],
                expert_rows=expert_rows(),
                decode_steps=steps.steps,
                decode_part_ms=steps.part_ms,
                cache_blocks=now[1][1],
                cache_blocks_used=now[1][0],
            )
