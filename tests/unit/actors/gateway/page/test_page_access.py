"""The page when it is not let in, when its gateway is away, and when the coordinator is."""

from __future__ import annotations

import pytest
from api_keys import entry, key_text

from expertmesh.actors.gateway.access.gate import Gate
from expertmesh.actors.gateway.access.key_file import keyring_of
from expertmesh.actors.gateway.access.keys import new_key
from expertmesh.actors.gateway.feed.feed import FeedTimes

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("page")]


async def test_keys_are_asked_for_kept_in_the_tab_and_sent(show, tmp_path):
    admin, user = new_key(), new_key()
    text = key_text(entry(admin, "admin", "operator"), entry(user, "user", "service"))
    keyring = keyring_of(text.encode(), tmp_path)
    shown = await show(gate=Gate(lambda: keyring), opened=False)
    page, watched = shown.page, shown.watched
    watched.expected = ("401", "403")
    await page.goto(f"{watched.url}/ui")
    await page.wait_for_selector('#connection[data-phase="denied"]')
    assert await page.locator(".node").count() == 0
    await page.click("#banner-action")
    await page.fill("#key-field", user)
    await page.keyboard.press("Enter")
    await page.wait_for_selector('#connection[data-phase="live"]')
    kept = await page.evaluate(
        "[JSON.stringify({...sessionStorage}), JSON.stringify({...localStorage}), document.cookie]"
    )
    assert user in kept[0]
    assert user not in kept[1] + kept[2] + page.url

    # A user looks on; to change the cluster takes the admin's key, with which the change goes on.
    await page.click("#rebalance")
    await page.click("#confirm-yes")
    await page.wait_for_selector("#key-why:visible")
    assert "admin" in await watched.text("#key-why")
    assert shown.cluster.update.generation.number == 1
    await page.fill("#key-field", admin)
    await page.click('#key-form [value="keep"]')
    await watched.until_text("#events", "Rebalanced")

    await page.click("#key")
    await page.click('#key-form [value="forget"]')
    await page.wait_for_selector('#connection[data-phase="denied"]')
    assert await page.evaluate("sessionStorage.length") == 0


async def test_a_gateway_that_is_gone_is_said_and_looked_for(show):
    shown = await show(times=FeedTimes(interval_s=0.1, most_s=0.5, linger_s=5.0))
    shown.watched.expected = ("ERR_INTERNET_DISCONNECTED",)
    await shown.page.context.set_offline(True)
    await shown.watched.until_text(
        "#banner-text", "The gateway does not answer. What is shown is what was seen last."
    )
    assert await shown.page.locator(".node").count() > 0
    await shown.page.context.set_offline(False)
    await shown.page.wait_for_selector('#connection[data-phase="live"]')
    await shown.watched.until("document.getElementById('banner').hidden")


async def test_a_feed_that_is_renewed_is_not_noticed(show):
    shown = await show(times=FeedTimes(interval_s=0.05, most_s=0.3, linger_s=5.0))
    await shown.page.evaluate(
        """() => {
          window.phases = new Set();
          const status = document.getElementById('connection');
          const note = () => window.phases.add(status.dataset.phase);
          new MutationObserver(note).observe(status, {attributes: true});
        }"""
    )
    n_asked = shown.cluster.n_asked
    for _ in range(8):
        await shown.tick()
        await shown.page.wait_for_timeout(150)
    assert shown.cluster.n_asked > n_asked
    assert await shown.page.evaluate("[...window.phases]") in ([], ["live"])


async def test_a_coordinator_that_is_away_is_said(show):
    shown = await show()
    shown.cluster.update.stale = True
    await shown.watched.until_text("#banner-text", "The coordinator does not answer.")
    shown.cluster.update.stale = False
    await shown.watched.until("document.getElementById('banner').hidden")


async def test_a_cluster_without_a_generation_says_why(show):
    shown = await show()
    shown.cluster.update.state, shown.cluster.update.reason = (
        "waiting",
        "3 slots are missing for the experts",
    )
    await shown.watched.until_text(
        "#banner-text", "The cluster is waiting: 3 slots are missing for the experts."
    )
    assert await shown.watched.text("#state") == "waiting"
