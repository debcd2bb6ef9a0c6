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
) -> None:
    """Runs until cancelled; sends nothing while the member is idle."""
    reported = 0
    while True:
        await asyncio.sleep(REPORT_S)
        now = tokens()
        if now != reported:
            reported = now
            steps = profile()
            member.report_load(now, expert_rows(), decode_steps=steps.steps, decode_part_ms=steps.part_ms)
