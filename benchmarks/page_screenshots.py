"""Screenshots of the live page for the documentation, and the time that its heat map takes to redraw.

    python benchmarks/page_screenshots.py            # writes docs/images/ui-*.png, prints the times

Starts the demo, puts it under load, kills a host, rebalances by the page's own button, and takes pictures
of it all. The large heat map is of a made-up cluster of 58 layers of 256 experts. Needs a Chromium
(`tools/install_chromium.sh`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import uvicorn
from live_bench.deployment import Deployment
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "support"))

from browser import WatchedPage, chromium, watched_page  # noqa: E402
from synthetic_cluster import WINDOW_S, SyntheticCluster  # noqa: E402

from expertmesh.actors.gateway.cluster_changes import ClusterChanges  # noqa: E402
from expertmesh.actors.gateway.core import GatewayCore  # noqa: E402
from expertmesh.actors.gateway.feed.feed import Feed, FeedTimes  # noqa: E402
from expertmesh.actors.gateway.feed.pieces import about_piece  # noqa: E402
from expertmesh.actors.gateway.formats.interface import ChatFormat  # noqa: E402
from expertmesh.actors.gateway.http import build_http_app  # noqa: E402
from expertmesh.actors.gateway.requests import ModelCard  # noqa: E402
from expertmesh.configs.schema import LimitsConfig  # noqa: E402

IMAGES = REPOSITORY / "docs" / "images"
SIZE = {"width": 1440, "height": 1000}
MOST_BYTES = 300_000
N_CLIENTS = 8
LOAD_S = 45.0
N_REDRAWS = 200
PROMPTS = ("The SELECT statement", "An index is", "A transaction", "The planner", "VACUUM removes")
SETTINGS = ("experts.redundant_slots=6", "router.threads=1", "experts.threads=1")


@asynccontextmanager
async def load(url: str) -> AsyncIterator[None]:
    """Clients that stream answers of different lengths, one after the other."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=5)

    async def ask(seed: int) -> None:
        draw = random.Random(seed)
        while True:
            stream = await client.completions.create(
                model="expertmesh-demo",
                prompt=draw.choice(PROMPTS),
                max_tokens=draw.randint(40, 400),
                temperature=0.8,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async with aclosing(aiter(stream)) as chunks:  # type: ignore[type-var]
                async for _ in chunks:
                    pass

    tasks = [asyncio.create_task(ask(seed)) for seed in range(N_CLIENTS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()


async def shoot(watched: WatchedPage, name: str, full: bool = False) -> None:
    """Takes a picture, small enough for a repository."""
    path = IMAGES / f"ui-{name}.png"
    await watched.page.screenshot(path=path, full_page=full)
    if path.stat().st_size > MOST_BYTES:
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1000:.0f} kB")


async def demo_pictures(deployment: Deployment, browser: Any) -> None:
    """The demo under load, during a kill, after a rebalance."""
    async with (
        load(deployment.http_url),
        watched_page(browser, deployment.http_url, viewport=SIZE, color_scheme="dark") as watched,
    ):
        page = watched.page
        await watched.open()
        await asyncio.sleep(LOAD_S)
        await page.fill("#prompt-tokens", "300")
        await page.click("#prompt-send")
        await page.wait_for_timeout(3000)
        await page.evaluate("scrollTo(0, 0)")
        await shoot(watched, "load", full=True)
        victim = deployment.topology().experts[-1]
        os.kill(victim.pid, signal.SIGKILL)
        await page.wait_for_selector('[data-state="lost"]')
        await watched.until_text("#events", "recovered")
        await page.evaluate("scrollTo(0, 0)")
        await page.wait_for_timeout(1500)
        await shoot(watched, "kill")
        await watched.until("document.querySelectorAll('[data-tier=hosts] [data-state=live]').length === 3")
        await asyncio.sleep(10)
        await page.emulate_media(color_scheme="light")
        await page.click("#rebalance")
        await page.click("#confirm-yes")
        await watched.until_text("#progress", "done in")
        await asyncio.sleep(12)
        await page.click("text=By host")
        await page.focus("#map-stage")
        await page.keyboard.press("Enter")
        await page.evaluate("scrollTo(0, 0)")
        await page.wait_for_timeout(600)
        await shoot(watched, "rebalance")
        await page.emulate_media(color_scheme="dark")
        await page.set_viewport_size({"width": 390, "height": 844})
        await page.click("text=By expert")
        await page.evaluate("scrollTo(0, 0)")
        await page.wait_for_timeout(1200)
        await shoot(watched, "phone")


@asynccontextmanager
async def made_up(cluster: SyntheticCluster) -> AsyncIterator[str]:
    """A gateway's HTTP face over a made-up cluster; gives its address."""
    card = ModelCard("made-up 58 x 256", "none", 300, 4096, frozenset({1}), n_experts=cluster.n_experts)
    core = GatewayCore(card, LimitsConfig(), 15.0)
    core.on_topology(await cluster())
    about = about_piece(core, has_chat=False, window_s=WINDOW_S, gateway="gateway-a")
    feed = Feed(core, cluster, about, FeedTimes(interval_s=0.2))
    app = build_http_app(core, ChatFormat(None), cluster, ClusterChanges(cluster, lambda path: None), feed)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await serving
        await core.close()


async def large_map(browser: Any) -> None:
    """58 layers of 256 experts: a picture, and how long a redraw takes."""
    cluster = SyntheticCluster(["127.0.0.1:1"], n_hosts=8, n_layers=58, n_experts=256, n_copies=16)
    async with (
        made_up(cluster) as url,
        watched_page(browser, url, viewport=SIZE, color_scheme="dark") as watched,
    ):
        await watched.open()
        names = ("map-redraw", "map-update")
        for _ in range(N_REDRAWS):
            n = await watched.page.evaluate("performance.getEntriesByName('map-update').length")
            cluster.tick()
            await watched.until(f"performance.getEntriesByName('map-update').length > {n}")
        for name, what in zip(names, ("cells alone", "and marks, legend, hottest experts"), strict=True):
            entries = f"performance.getEntriesByName('{name}').map((entry) => entry.duration)"
            ms = sorted(await watched.page.evaluate(entries))
            print(
                f"58 x 256, {what}: median {statistics.median(ms):.1f} ms, "
                f"99 % {ms[int(0.99 * len(ms))]:.1f} ms, n = {len(ms)}"
            )
        await watched.page.focus("#map-stage")
        await watched.page.keyboard.press("Enter")
        await watched.page.wait_for_timeout(500)
        await shoot(watched, "large")


async def run(only_large: bool) -> None:
    IMAGES.mkdir(exist_ok=True)
    async with chromium() as browser:
        await large_map(browser)
        if only_large:
            return
        with tempfile.TemporaryDirectory() as folder:
            deployment = await asyncio.to_thread(Deployment, 2, 3, SETTINGS, Path(folder) / "serve.log")
            try:
                await demo_pictures(deployment, browser)
            finally:
                await asyncio.to_thread(deployment.stop)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only-large", action="store_true", help="only the made-up cluster, and the times")
    asyncio.run(run(parser.parse_args().only_large))
