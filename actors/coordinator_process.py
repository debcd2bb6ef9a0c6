"""The process of the coordinator's actor: ended when it does not answer, so that Ray starts another."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray

# Private, because the public state API needs the dashboard, which may be away.
from ray._private.state import actors as known_actors

logger = logging.getLogger(__name__)

RUNNING = "ALIVE"
"""Ray's word for an actor whose process runs, be it stopped; while one starts it says otherwise."""


class FrozenCoordinatorError(ConnectionError):
    """The coordinator ran and did not answer; its process was ended, and Ray starts another."""


async def end_if_frozen(actor: Any, deadline_s: float) -> None:
    """Returns at once when the actor answers its `ping`, or when Ray says that it does not run just now.

    Several members may find it frozen at the same time: only a process that is still the one that was asked
    is ended.

    Raises:
        FrozenCoordinatorError: it did not answer within the deadline.
        ray.exceptions.RayError: the actor is just restarting or has died.
    """
    state, pid = await asyncio.to_thread(_process_of, actor)
    if state != RUNNING:
        return
    try:
        async with asyncio.timeout(deadline_s):
            await actor.ping.remote()
    except TimeoutError as silence:
        if await asyncio.to_thread(_process_of, actor) == (RUNNING, pid):
            await asyncio.to_thread(ray.kill, actor, no_restart=False)
            logger.error(
                "the coordinator, process %d, did not answer for %g s and was killed", pid, deadline_s
            )
        raise FrozenCoordinatorError(f"the coordinator did not answer for {deadline_s:g} s") from silence


def _process_of(actor: Any) -> tuple[str, int]:
    """Ray's state of the actor, and its process id."""
    known = known_actors(actor._actor_id.hex())
    return str(known.get("State", "")), int(known.get("Pid", 0))
