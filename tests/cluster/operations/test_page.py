"""The live page on a running deployment: it shows what is there, changes it, and sees it lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
from browser import WAIT_MS, WatchedPage, chromium, watched_page
from serve_clients import Call
from steady_calls import SteadyCalls

from expertmesh.proto.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from conftest import Operated

pytestmark = pytest.mark.xdist_group("operations")

HOSTS = '[data-tier="hosts"] .node[data-state="live"]'


def in_page(operated: Operated, act: Callable[[WatchedPage], Awaitable[None]]) -> None:
    """Runs `act` with the page open and the admin's key in it."""

    async def run() -> None:
        async with chromium() as browser, watched_page(browser, operated.admin.http_url) as watched:
            watched.expected = ("401",)
            await watched.page.goto(f"{watched.url}/ui")
            await watched.page.wait_for_selector('#connection[data-phase="denied"]')
            await watched.page.click("#key")
            await watched.page.fill("#key-field", operated.admin.key)
            await watched.page.keyboard.press("Enter")
            await watched.page.wait_for_selector('#connection[data-phase="live"]')
            await watched.page.wait_for_selector(HOSTS)
            await act(watched)

    asyncio.run(run())


async def scale_hosts(watched: WatchedPage, by: int) -> None:
    """Asks for one host more or less, and waits until the page says that it is done."""
    await watched.page.click(f'[data-deployment="experts"] [data-step="{by}"]')
    await watched.page.click('[data-deployment="experts"] [data-apply]')
    await watched.page.click("#confirm-yes")
    await watched.until_text("#progress", "done in")


async def where_experts_stand(watched: WatchedPage) -> list[str]:
    """What the heat map says of the copies of each expert of every layer, going through it by keys."""
    await watched.page.focus("#map-stage")
    await watched.page.keyboard.press("Control+Home")
    said = []
    for _ in range(int(await watched.page.get_attribute("#map-stage", "aria-rowcount") or 0)):
        for _ in range(int(await watched.page.get_attribute("#map-stage", "aria-colcount") or 0)):
            said.append((await watched.text("#map-said")).rpartition(" · ")[2])
            await watched.page.keyboard.press("ArrowRight")
        await watched.page.keyboard.press("Home")
        await watched.page.keyboard.press("ArrowDown")
    return said


async def until_experts_stand(watched: WatchedPage, condition: Callable[[list[str]], bool]) -> None:
    """Waits until the heat map says so: the page hears of a change first, then where experts stand."""
    async with asyncio.timeout(WAIT_MS / 1e3):
        while not condition(await where_experts_stand(watched)):
            pass


def test_scale_and_rebalance_by_the_page_while_requests_run(operated: Operated) -> None:
    admin = operated.admin
    before = admin.until_settled(1, 2)
    # The same token over and over goes to the same few experts: there is something to balance.
    calls = [Call((11 + i % 2,) * 150, 60, seed=i) for i in range(4)]

    async def change(watched: WatchedPage) -> None:
        pids = [f"pid {member.pid}" for member in (*before.routers, *before.experts)]
        shown = await watched.text("#topology")
        assert [pid for pid in pids if pid not in shown] == []
        await watched.until("document.querySelectorAll('#hot button').length === 6")  # rows are routed
        await watched.until(f"document.querySelectorAll('{HOSTS}').length === 2")

        stood = await where_experts_stand(watched)
        await watched.page.click("#rebalance")
        await watched.page.click("#confirm-yes")
        await watched.until_text("#progress", "Rebalancing: done in")
        await watched.until_text("#events .event", "Rebalanced")
        await until_experts_stand(
            watched, lambda now: now != stood and any("2 copies" in where for where in now)
        )

        await scale_hosts(watched, 1)
        await watched.until(f"document.querySelectorAll('{HOSTS}').length === 3")
        await watched.until_text("#events .event", "Scaled: 1 router, 3 hosts")
        await until_experts_stand(watched, lambda now: any("host 2" in where for where in now))

    answers = SteadyCalls(admin, calls).during(lambda: in_page(operated, change))
    assert {answer.finish_reason for _, answer in answers} == {"length"}
    assert {len(answer.token_ids) for _, answer in answers} == {60}
    assert len(answers) > len(calls)


def test_a_killed_host_is_an_event_and_its_replacement_is_seen(operated: Operated) -> None:
    admin = operated.admin
    n_hosts = len(admin.topology().experts)
    victim = admin.until_settled(1, n_hosts).experts[-1]

    async def kill(watched: WatchedPage) -> None:
        os.kill(victim.pid, signal.SIGKILL)
        await watched.page.wait_for_selector(f'[data-member="{victim.incarnation}"][data-state="lost"]')
        await watched.until_text("#events", "Lost and recovered")
        assert f"(pid {victim.pid}" in await watched.text("#events")
        # Serve starts another, which joins by a planned change.
        await watched.until(f"document.querySelectorAll('{HOSTS}').length === {n_hosts}")
        await watched.until_text("#events .event", "Scaled")

    in_page(operated, kill)
    if n_hosts > 2:  # as it was found
        admin.cluster_call("Scale", pb.ScaleRequest(what="experts", replicas=2))
    admin.until_settled(1, 2)
