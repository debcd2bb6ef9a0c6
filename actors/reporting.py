"""Tells the coordinator what a member does, once a second while it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from expertmesh.cluster.load import Load
from expertmesh.cluster.member import MemberClient

REPORT_S = 1.0


@dataclass(slots=True)
class LoadingProgress:
    """Bytes of weights that this process has read, over all its loads; written by the loading thread."""

    loaded_bytes: int = 0
    total_bytes: int = 0
    _begun: tuple[int, int] = field(default=(0, 0))

    def begin(self) -> None:
        """Another load starts: its bytes come on top of what was loaded before."""
        self._begun = (self.loaded_bytes, self.total_bytes)

    def __call__(self, done_bytes: int, all_bytes: int) -> None:
        """The progress callback of the loaders in `models`."""
        loaded_bytes, total_bytes = self._begun
        self.loaded_bytes, self.total_bytes = loaded_bytes + done_bytes, total_bytes + all_bytes


async def report_load(
    member: MemberClient, current: Callable[[], Load], tell: Callable[[Load], None] = lambda load: None
) -> None:
    """Runs until cancelled; sends nothing while nothing changes. `tell` gets every look, for metrics."""
    reported = Load()
    while True:
        await asyncio.sleep(REPORT_S)
        load = current()
        tell(load)
        if load != reported:
            reported = load
            member.report_load(load)
