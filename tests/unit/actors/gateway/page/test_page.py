"""The live page in a headless Chromium. `watched_page` fails each test whose page logs an error, breaks its
content security policy, or asks anybody but its own gateway for anything."""

from __future__ import annotations

import pytest

from expertmesh.cluster.scaling import ScaleRefusedError

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("page")]

LARGE = {"n_layers": 58, "n_experts": 256, "n_hosts": 8, "n_copies": 16}


async def test_the_whole_cluster_is_shown(show):
    shown = await show()
    text = shown.watched.text
    assert await text("#model") == "tiny"
    assert (await text("#state"), await text("#generation")) == ("running", "generation 1")
    assert await shown.page.locator('[data-tier="gateways"] .node').count() == 1
    assert await shown.page.locator('[data-tier="routers"] .node').count() == 1
    assert await shown.page.locator('[data-tier="hosts"] .node').count() == 4
    assert "5 MoE layers × 16 experts" in await text("#map-sub")
    assert "Started: 1 router, 4 hosts" in await text("#events")
    await shown.watched.until_text("#tiles", "of 2,048 blocks")
    await shown.watched.until_text("#hot", "copies")


async def test_a_large_map_is_drawn_in_one_go(show):
    shown = await show(size=LARGE)
    await shown.page.evaluate(
        """() => {
          window.calls = {putImageData: 0, drawImage: 0, fillRect: 0, fillText: 0};
          const proto = CanvasRenderingContext2D.prototype;
          for (const name of Object.keys(window.calls)) {
            const real = proto[name];
            proto[name] = function (...given) {
              if (this.canvas.id === 'map-cells' || !this.canvas.id) window.calls[name] += 1;
              return real.apply(this, given);
            };
          }
          performance.clearMeasures();
        }"""
    )
    await shown.tick()
    drawn = "performance.getEntriesByName('map-redraw').length"
    calls, n = await shown.page.evaluate(f"[window.calls, {drawn}]")
    # One image of 58 x 256 pixels, scaled up once; nothing is drawn cell by cell.
    assert calls == {"putImageData": n, "drawImage": n, "fillRect": 0, "fillText": 0}
    # The hottest cell has the last colour of the scale.
    where = await shown.page.evaluate(
        """() => {
          document.getElementById('map-stage').focus();
          document.getElementById('map-stage').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}));
          const row = Number(document.getElementById('map-row').getAttribute('aria-rowindex')) - 1;
          const column = Number(document.getElementById('map-cell').getAttribute('aria-colindex')) - 1;
          const canvas = document.getElementById('map-cells');
          const x = Math.floor((column + 0.5) * canvas.width / 256);
          const y = Math.floor((row + 0.5) * canvas.height / 58);
          return {row, column, pixel: [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]};
        }"""
    )
    rows = list(shown.cluster.update.window_expert_rows)
    layers = [rows[i : i + 256] for i in range(0, len(rows), 256)]
    ratios = [[row / (sum(layer) / 256) for row in layer] for layer in layers]
    hottest = max((ratio, i, j) for i, layer in enumerate(ratios) for j, ratio in enumerate(layer))
    assert (where["row"], where["column"]) == hottest[1:]
    assert where["pixel"] == [68, 1, 84, 255]  # of the light scale


async def test_the_map_by_keys_alone(show):
    shown = await show()
    page, text = shown.page, shown.watched.text
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.id") == "map-stage":
            break
    assert await page.evaluate("document.activeElement.id") == "map-stage"
    await page.keyboard.press("Control+Home")
    assert (await text("#map-said")).startswith("Layer 0, expert 0 ·")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        await page.keyboard.press(key)
    said = await text("#map-said")
    assert said.startswith("Layer 1, expert 1 ·")
    assert "host 1 slot 0" in said
    cell = page.locator("#map-cell")
    assert (await cell.text_content(), await cell.get_attribute("aria-colindex")) == (said, "2")
    await page.keyboard.press("Control+End")
    assert (await text("#map-said")).startswith("Layer 4, expert 15 ·")
    await page.keyboard.press("Escape")
    assert "Point at a cell" in await text("#map-said")


async def test_what_a_host_holds_is_lit_and_the_view_by_host_says_where_copies_stand(show):
    shown = await show()
    host = shown.page.locator('[data-tier="hosts"] button').nth(1)
    await host.focus()
    await shown.page.keyboard.press("Enter")
    await shown.watched.until_text("#map-said", "host 1 holds")
    assert await host.get_attribute("aria-pressed") == "true"
    await shown.page.keyboard.press("Enter")
    await shown.page.focus('input[name="map-view"]')
    await shown.page.keyboard.press("ArrowRight")
    assert "18 slots" in await shown.watched.text("#map-sub")
    await shown.page.focus("#map-stage")
    await shown.page.keyboard.press("Control+Home")
    first = shown.cluster.update.generation.placement[0].hosts[0].experts[0]
    assert f"expert {first} ·" in await shown.watched.text("#map-said")


async def test_light_and_dark(show):
    ground = "getComputedStyle(document.body).backgroundColor"
    shown = await show(color_scheme="dark")
    dark = await shown.page.evaluate(ground)
    await shown.page.emulate_media(color_scheme="light")
    light = await shown.page.evaluate(ground)
    assert (dark, light) == ("rgb(11, 14, 19)", "rgb(244, 245, 248)")
    for choice, expected in (("light", light), ("dark", dark)):
        await shown.page.click("#theme")
        assert await shown.watched.text("#theme") == f"Theme: {choice}"
        assert await shown.page.evaluate(ground) == expected
    await shown.watched.open()
    assert await shown.page.evaluate(ground) == dark
    await shown.page.click("#theme")
    assert await shown.page.evaluate(ground) == light  # as the system has it


async def test_a_prompt_streams_and_is_never_markup(show, says):
    answer = 'a <img src="x" onerror="document.title=1"> & <b>b</b>, twice\n' * 4
    shown = await show(says(answer))
    await shown.page.fill("#prompt", "<i>Say</i>")
    await shown.page.fill("#prompt-tokens", "600")
    await shown.page.click("#prompt-send")
    await shown.watched.until_text("#prompt-said", "the model was done")
    shown_text = await shown.page.evaluate("document.getElementById('answer').textContent")
    assert shown_text == f"<i>Say</i>{answer}"
    assert await shown.page.locator("#answer img, #answer b, #answer i").count() == 0
    figures = await shown.watched.text("#prompt-figures")
    assert f"{len(answer.encode()) + 1}" in figures
    assert "11 tokens" in figures  # <bos> and a token a character


async def test_an_answer_can_be_stopped(show):
    shown = await show()
    shown.router.edit = lambda news: None if news.index > 5 else news  # the stream stays open
    await shown.page.click("#prompt-send")
    await shown.page.wait_for_selector("#answer .token", state="attached")
    await shown.page.click("#prompt-stop")
    await shown.watched.until_text("#prompt-said", "Stopped.")
    await shown.router.until(lambda router: len(router.cancels) == 1)


async def test_scaling_is_confirmed_done_and_seen(show):
    shown = await show()
    page = shown.page
    await page.click('[aria-label="One host more"]')
    assert await shown.watched.text("#experts-wanted") == "5"
    await page.click("[data-deployment=experts] [data-apply]")
    assert await shown.watched.text("#confirm-title") == "4 → 5 expert hosts?"
    await page.click('#confirm [value="no"]')
    assert shown.cluster.update.generation.number == 1
    await page.click("[data-deployment=experts] [data-apply]")
    await page.click("#confirm-yes")
    await shown.watched.until_text("#progress", "Scaling to 5 expert hosts: done")
    await shown.watched.until("document.querySelectorAll('[data-tier=hosts] .node').length === 5")
    await shown.watched.until_text("#events", "Scaled: 1 router, 5 hosts")
    assert await page.get_attribute("#events-said", "role") == "status"
    await shown.watched.until_text("#events-said", "Scaled")


async def test_a_refusal_is_shown_with_its_reason(show):
    shown = await show()
    shown.watched.expected = ("409",)
    shown.cluster.error = ScaleRefusedError("3 hosts hold the model, 1 does not")
    await shown.page.click('[aria-label="One host less"]')
    await shown.page.click("[data-deployment=experts] [data-apply]")
    await shown.page.click("#confirm-yes")
    await shown.watched.until_text("#progress", "Refused: 3 hosts hold the model, 1 does not")
    assert await shown.page.get_attribute("#progress", "role") == "status"


async def test_a_rebalance_adds_copies_to_the_map(show):
    shown = await show()
    page = shown.page
    await page.focus("#map-stage")
    await page.keyboard.press("Enter")
    assert "2 copies" in await shown.watched.text("#map-said")
    hot = "[...document.querySelectorAll('#hot button')]"
    one_copy = f"{hot}.filter(b => !b.textContent.includes('copies')).length"
    before = await page.evaluate(one_copy)
    await page.click("#rebalance")
    await page.click("#confirm-yes")
    await shown.watched.until_text("#events", "Rebalanced")
    await shown.watched.until_text("#generation", "generation 2")
    assert before > 0
    await shown.watched.until(f"{one_copy} < {before}")


async def test_a_lost_host_is_an_event_and_a_ghost_for_a_while(show):
    shown = await show()
    lost = shown.cluster.kill_host()
    await shown.page.wait_for_selector(f'[data-member="{lost}"][data-state="lost"]')
    await shown.watched.until_text("#events", "Lost and recovered: 1 router, 3 hosts")
    assert f"{lost} (pid 203" in await shown.watched.text("#events")
    # The coordinator remembers it: a page that is opened now knows it, too.
    await shown.watched.open()
    await shown.watched.until_text("#events", "Lost and recovered")
    assert await shown.page.locator('[data-state="lost"]').count() == 0


async def test_a_host_is_lost_whoever_noticed_and_left_when_it_was_let_go(show):
    shown = await show()
    lost = shown.cluster.kill_host("router-0: rank 5 closed its connection during combine of MoE layer 3")
    await shown.page.wait_for_selector(f'[data-member="{lost}"][data-state="lost"]')
    let_go = shown.cluster.update.generation.members[-1].incarnation
    await shown.cluster.scale("experts", 2)
    await shown.page.wait_for_selector(f'[data-member="{let_go}"][data-state="left"]')


async def test_every_width_fits(show):
    shown = await show(viewport={"width": 380, "height": 800})
    for width in (380, 768, 1080, 1440, 2560):
        await shown.page.set_viewport_size({"width": width, "height": 900})
        await shown.tick()
        wide = await shown.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        map_width = await shown.page.evaluate(
            "document.getElementById('map-marks').getBoundingClientRect().right"
        )
        assert map_width <= width
