"""The page in a browser, over a real gateway whose cluster is made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from browser import WatchedPage, chromium, watched_page
from synthetic_cluster import WINDOW_S, SyntheticCluster

from expertmesh.actors.gateway.access.gate import Gate
from expertmesh.actors.gateway.cluster_changes import ClusterChanges
from expertmesh.actors.gateway.core import GatewayCore
from expertmesh.actors.gateway.feed.feed import Feed, FeedTimes
from expertmesh.actors.gateway.feed.pieces import about_piece
from expertmesh.actors.gateway.formats.interface import ChatFormat
from expertmesh.actors.gateway.http import build_http_app
from expertmesh.actors.gateway.requests import ModelCard
from expertmesh.configs.schema import LimitsConfig

TIMES = FeedTimes(interval_s=0.1, most_s=30.0, linger_s=0.1)


@pytest.fixture(scope="session")
async def browser(anyio_backend: str) -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started


class Shown:
    """A page, the cluster that it shows, and the router behind it."""

    def __init__(self, watched: WatchedPage, cluster: SyntheticCluster, core: Any, router: Any) -> None:
        self.watched, self.page = watched, watched.page
        self.cluster, self.core, self.router = cluster, core, router

    async def tick(self) -> None:
        """A second of load, shown."""
        n_drawn = "performance.getEntriesByName('map-redraw').length"
        before = await self.page.evaluate(n_drawn)
        self.cluster.tick()
        await self.watched.until(f"{n_drawn} > {before}")


@pytest.fixture
async def show(gateway: Any, http_server: Any, browser: Any, tokenizer: Any) -> AsyncIterator[Any]:
    """`show(script, gate, times, size={...}, **options)`: an open page over a cluster of this size."""
    async with AsyncExitStack() as stack:

        async def start(
            script: Any = None,
            gate: Gate | None = None,
            times: FeedTimes = TIMES,
            opened: bool = True,
            size: dict[str, int] | None = None,
            **options: Any,
        ) -> Shown:
            router = await (gateway.router(script) if script else gateway.router())
            cluster = SyntheticCluster([router.address], **(size or {}))
            card = ModelCard("tiny", "Tiny", 300, 4096, frozenset({1}), n_experts=cluster.n_experts)
            core = GatewayCore(card, LimitsConfig(), 15.0, tokenizer, "gateway-a")
            stack.push_async_callback(core.close)
            core.on_topology(await cluster())
            await gateway.until_open(core, 1)
            about = about_piece(core, has_chat=False, window_s=WINDOW_S, gateway="gateway-a")
            changes = ClusterChanges(cluster, lambda path: None)
            app = build_http_app(
                core, ChatFormat(None), cluster, changes, Feed(core, cluster, about, times), gate
            )
            url = await stack.enter_async_context(http_server(app))
            watched = await stack.enter_async_context(watched_page(browser, url, **options))
            if opened:
                await watched.open()
            return Shown(watched, cluster, core, router)

        yield start
    await asyncio.sleep(0)
