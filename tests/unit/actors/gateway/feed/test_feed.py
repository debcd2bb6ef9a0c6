"""The feed: one question a second however many read, nothing while nobody does, and every change told."""

from __future__ import annotations

import asyncio
import json

import pytest

from expertmesh.actors.gateway.feed.feed import MOST_WAITING, Feed, FeedTimes
from expertmesh.actors.gateway.feed.pieces import steadied
from expertmesh.proto.v1 import internal_pb2 as pb

pytestmark = pytest.mark.anyio

FAST = FeedTimes(interval_s=0.02, most_s=20.0, linger_s=0.05)
WAIT_S = 10.0


class Coordinator:
    """Answers with `update`; counts the questions."""

    def __init__(self, update: pb.TopologyUpdate) -> None:
        self.update = update
        self.n_asked = 0

    async def __call__(self) -> pb.TopologyUpdate:
        self.n_asked += 1
        answer = pb.TopologyUpdate()
        answer.CopyFrom(self.update)
        return answer


class Page:
    """Reads the feed and keeps the last piece of every kind."""

    def __init__(self, feed: Feed) -> None:
        self._lines = feed.read()
        self.kinds: list[str] = []
        self.last: dict[str, dict] = {}

    async def next(self) -> dict:
        async with asyncio.timeout(WAIT_S):
            piece = json.loads(await anext(self._lines))
        self.kinds.append(piece["type"])
        self.last[piece["type"]] = piece
        return piece

    async def until(self, kind: str) -> dict:
        while (piece := await self.next())["type"] != kind:
            pass
        return piece

    async def close(self) -> None:
        await self._lines.aclose()


@pytest.fixture
async def router(gateway):
    return await gateway.router()


@pytest.fixture
async def core(gateway, router):
    return await gateway.serving(router)


@pytest.fixture
def coordinator(topology, router) -> Coordinator:
    return Coordinator(topology(router))


async def until(condition) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_picture_first_then_what_changes(core, coordinator):
    page = Page(Feed(core, coordinator, {"model": "tiny", "n_experts": 2}, FAST))
    picture = await page.next()
    assert (picture["type"], picture["model"]) == ("picture", "tiny")
    assert [m["pid"] for m in picture["topology"]["routers"]] == [100]
    assert [m["pid"] for m in picture["topology"]["hosts"]] == [200]
    assert picture["placement"] == {"generation": 1, "layers": [[[0, 1]], [[0, 1]]]}
    coordinator.update.window_expert_rows.extend([7, 0, 1, 2])
    load = await page.until("load")
    assert load["expert_rows"] == [7, 0, 1, 2]
    coordinator.update.changes.add(
        generation=2, kind="scale", reason="a host joins", outcome="live", seconds=1.234, copies_placed=8
    )
    [event] = (await page.until("events"))["events"]
    assert (event["kind"], event["seconds"], event["copies_placed"]) == ("scale", 1.23, 8)
    assert page.kinds.count("topology") == 0  # it has not changed
    await page.close()


async def test_nobody_is_asked_without_a_reader_and_one_question_serves_all(core, coordinator):
    feed = Feed(core, coordinator, {}, FAST)
    assert (feed.looking, core.stream_watch, coordinator.n_asked) == (False, None, 0)
    pages = [Page(feed) for _ in range(5)]
    for page in pages:
        await page.next()
    assert coordinator.n_asked == 1
    n_figures = 10
    for _ in range(n_figures):
        await asyncio.gather(*(page.until("figures") for page in pages))
    # Each question and each second of figures begin an interval; five readers would have asked five times.
    assert coordinator.n_asked < 3 * n_figures
    for page in pages:
        await page.close()
    await until(lambda: not feed.looking)
    assert core.stream_watch is None
    n_asked = coordinator.n_asked
    await asyncio.sleep(5 * FAST.interval_s)
    assert coordinator.n_asked == n_asked


async def test_a_reader_that_comes_back_finds_the_figures_so_far(core, coordinator):
    feed = Feed(core, coordinator, {}, FeedTimes(interval_s=0.02, linger_s=30.0))
    page = Page(feed)
    for _ in range(3):
        await page.until("figures")
    await page.close()
    again = Page(feed)
    assert len((await again.next())["history"]) >= 3
    await again.close()
    feed._stop()


async def test_a_push_is_told_without_a_question(core, coordinator, topology, router):
    feed = Feed(core, coordinator, {}, FeedTimes(interval_s=60.0, linger_s=0.0))
    page = Page(feed)
    await page.next()
    await asyncio.sleep(0)
    core.on_topology(topology(router, number=2, state="forming"))
    told = await page.until("topology")
    assert (told["generation"], told["state"], coordinator.n_asked) == (2, "forming", 1)
    assert (await page.until("placement"))["generation"] == 2
    await page.close()


async def test_streams_are_measured_while_somebody_reads(core, coordinator, raw):
    page = Page(Feed(core, coordinator, {}, FAST))
    await page.next()
    request = await core.validate(raw(max_tokens=20))
    await core.complete(request)
    n_tokens, gaps, first = 0, 0, []
    while n_tokens < 20:
        figures = await page.until("figures")
        n_tokens, gaps = n_tokens + figures["tokens"], gaps + figures["gaps"]
        first += [figures["first_p50_ms"]] if figures["first_p50_ms"] is not None else []
    assert (n_tokens, gaps, len(first)) == (20, 19, 1)
    await page.close()


async def test_the_routers_speed_comes_from_their_totals(core, coordinator, topology, router):
    page = Page(Feed(core, coordinator, {}, FAST))
    await page.next()
    [name] = [m.incarnation for m in coordinator.update.generation.members if m.role == pb.ROLE_ROUTER]
    coordinator.update.tokens[0] += 1000
    rates = [0.0]
    while rates[-1] == 0:
        rates.append((await page.until("figures"))["router_tokens_per_s"].get(name, 0.0))
    assert rates[-1] > 0
    coordinator.update.tokens[0] = 3  # it has begun anew: no negative speed
    for _ in range(8):
        assert (await page.until("figures"))["router_tokens_per_s"][name] >= 0
    await page.close()


async def test_a_slow_reader_gets_a_new_picture(core, coordinator):
    feed = Feed(core, coordinator, {}, FAST)
    page = Page(feed)
    await page.next()
    for i in range(MOST_WAITING + 2):
        feed._send("load", {"expert_rows": [i]})
    assert (await page.next())["type"] == "picture"
    await page.close()


async def test_a_reader_is_sent_away_in_time_and_when_the_gateway_drains(core, coordinator):
    feed = Feed(core, coordinator, {}, FeedTimes(interval_s=0.02, most_s=0.1, linger_s=0.0))
    assert (await Page(feed).until("end"))["reason"] == "renew"
    feed = Feed(core, coordinator, {}, FeedTimes(interval_s=60.0, linger_s=0.0))
    page = Page(feed)
    await page.next()
    core.drain()
    assert (await page.until("end"))["reason"] == "draining"
    await page.close()
    await until(lambda: not feed.looking)


async def test_a_stale_answer_is_told_as_such(core, coordinator):
    page = Page(Feed(core, coordinator, {}, FAST))
    await page.next()
    coordinator.update.stale = True
    assert (await page.until("topology"))["stale"] is True
    await page.close()


async def test_a_coordinator_that_cannot_be_read_ends_the_feed(core):
    async def broken() -> pb.TopologyUpdate:
        raise RuntimeError("no luck")

    feed = Feed(core, broken, {}, FAST)
    assert (await Page(feed).next()) == {"type": "end", "reason": "failed"}
    assert not feed.looking


def test_events_keep_the_time_that_they_were_told_with():
    event = {"generation": 2, "kind": "scale", "outcome": "live", "reason": "", "routers": 1, "experts": 2}
    before = {"events": [event | {"unix_s": 10.0}]}
    after = {"events": [event | {"unix_s": 10.1}, event | {"generation": 3, "unix_s": 20.0}]}
    assert [e["unix_s"] for e in steadied(after, before)["events"]] == [10.0, 20.0]
    assert steadied(after, None) == after
