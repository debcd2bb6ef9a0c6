"""The routers of the live generation: one stream to each, and the choice of the least loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from expertmesh.actors.gateway.router_link import NewsSink, RouterAddress, RouterLink

__all__ = ["NewsSink", "RouterAddress", "RouterLink", "RouterPool"]


class RouterPool:
    """Keeps a stream to every router of the live generation.

    Args:
        gateway_incarnation: names this gateway to the routers.
        lease_s: routers drop the requests of a gateway that has been silent for this long.
        on_change: called whenever a stream has opened or ended: waiting requests can perhaps be placed.
    """

    def __init__(self, gateway_incarnation: str, lease_s: float, on_change: Callable[[], None]) -> None:
        self._gateway_incarnation = gateway_incarnation
        self._lease_s = lease_s
        self._on_change = on_change
        self._links: dict[RouterAddress, RouterLink] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def n_open(self) -> int:
        """Routers that requests can be sent to now."""
        return sum(link.is_open for link in self._links.values())

    def update(self, routers: Iterable[RouterAddress]) -> None:
        """Opens streams to new routers and closes those to routers that are gone.

        Requests of a router that is gone are told so, and can be placed again at once.
        """
        wanted = set(routers)
        for router in wanted - self._links.keys():
            self._links[router] = RouterLink(
                router, self._gateway_incarnation, self._lease_s, self._on_change
            )
        gone = [self._links.pop(router) for router in self._links.keys() - wanted]
        for link in gone:
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def choose(self) -> RouterLink | None:
        """The open router with the fewest requests, then queued tokens; None when none is open."""
        links = (link for link in self._links.values() if link.is_open)
        return min(links, key=lambda link: (link.n_requests, link.queued_tokens), default=None)

    async def close(self) -> None:
        """Closes every stream."""
        self.update(())
        await asyncio.gather(*self._closing)
