"""The routes below /v1/cluster, and the page's files, over real sockets."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import httpx2 as httpx
import pytest

from expertmesh.actors.gateway.feed.feed import FeedTimes
from expertmesh.actors.gateway.formats.interface import ChatFormat
from expertmesh.actors.gateway.page_files import FOLDER
from expertmesh.cluster.control import CoordinatorUnavailableError
from expertmesh.cluster.scaling import InvalidScaleError, RebalanceRefusedError, ScaleRefusedError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http(gateway, http_server, http_app):
    async with AsyncExitStack() as stack:
        core = await gateway.serving(await gateway.router())

        async def fresh():
            return core.topology

        times = FeedTimes(interval_s=0.02, most_s=0.2, linger_s=0)
        app = http_app(core, ChatFormat(None), fresh, feed_times=times)
        url = await stack.enter_async_context(http_server(app))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10))


async def test_changes_reach_the_coordinator(http, control):
    answer = await http.post("/v1/cluster/scale", json={"deployment": "experts", "replicas": 3})
    assert answer.json() == {"deployment": "experts", "replicas_before": 1, "replicas": 3}
    assert control.asked == [("experts", 3)]
    answer = await http.post("/v1/cluster/rebalance")
    assert answer.json() == {"begun": True, "imbalance": 1.5}
    answer = await http.post("/v1/cluster/reload", json={"path": "/new"})
    assert answer.json() == {"version": 2, "after_generation": 7}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("scale", {"deployment": "gateway", "replicas": 2}, "deployment"),
        ("scale", {"deployment": "experts"}, "replicas"),
        ("scale", {"deployment": "experts", "replicas": "3"}, "replicas"),
        ("scale", {"deployment": "experts", "replicas": 2, "force": True}, "force"),
        ("reload", {"path": "relative"}, "path"),
        ("reload", {}, "path"),
    ],
)
async def test_a_bad_body_is_a_400_that_names_the_field(http, control, path, body, param):
    answer = await http.post(f"/v1/cluster/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert control.asked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidScaleError("why"), 400),
        (ScaleRefusedError("why"), 409),
        (RebalanceRefusedError("why"), 409),
        (CoordinatorUnavailableError("why"), 503),
    ],
)
async def test_refusals_are_errors_in_openais_form(http, control, error, status):
    control.error = error
    for path, body in (
        ("scale", {"deployment": "routers", "replicas": 2}),
        ("rebalance", {}),
        ("reload", {"path": "/new"}),
    ):
        answer = await http.post(f"/v1/cluster/{path}", json=body)
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == "why"
    control.error = None
    answer = await http.post("/v1/cluster/reload", json={"path": "/other"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "path")


async def test_the_feed_is_lines_of_json_that_end_by_themselves(http):
    async with http.stream("GET", "/v1/cluster/feed") as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["cache-control"] == "no-store"
        pieces = [json.loads(line) async for line in response.aiter_lines()]
    assert pieces[0]["type"] == "picture"
    assert (pieces[0]["model"], pieces[0]["gateway"], pieces[0]["has_chat"]) == ("tiny", "gateway-a", False)
    assert pieces[-1] == {"type": "end", "reason": "renew"}


async def test_every_file_of_the_page_is_served_as_what_it_is(http):
    redirect = await http.get("/ui")
    assert (redirect.status_code, redirect.headers["location"]) == (307, "ui/")
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path in FOLDER.iterdir():
        answer = await http.get(f"/ui/{'' if path.name == 'index.html' else path.name}")
        assert answer.status_code == 200
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].startswith(types[path.suffix])
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        again = await http.get(f"/ui/{path.name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


async def test_nothing_else_is_served(http):
    for path in ("/ui/other.js", "/ui/../http.py", "/ui/%2e%2e/http.py", "/ui/__init__.py"):
        assert (await http.get(path)).status_code == 404
