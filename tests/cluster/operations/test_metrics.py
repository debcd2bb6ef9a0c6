"""What Prometheus scrapes from a deployment under load: the figures are those of what was sent."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import openai
import pytest
import ray
from promql import metric_names
from scrape import Scrape, scrape_at_rest, scrape_until
from serve_clients import Call, random_prompt
from serve_cluster import actor_names

from expertmesh.cluster.metrics import catalog
from expertmesh.cluster.metrics.catalog import CATALOG, Metric

if TYPE_CHECKING:
    from conftest import Operated

pytestmark = pytest.mark.xdist_group("operations")

REPOSITORY = Path(__file__).resolve().parents[3]
N_TOKENS, N_PROMPT = 24, 40
CALLS = [Call(random_prompt(N_PROMPT, 4096, seed), N_TOKENS, seed=seed) for seed in range(8)]

ALWAYS = tuple(metric for metric in CATALOG if not metric.when)
"""What a deployment exports once it has served a request."""


def own(metric: Metric, found: Scrape, suffix: str = "", **labels: str) -> float:
    """The sum over a metric's series of the shared deployment."""
    return found.sum(metric.exported + suffix, application="operated", **labels)


@pytest.fixture(scope="module")
def before(operated: Operated) -> Scrape:
    """Before this module sends anything: others may have been here, and all of theirs has been exported."""
    operated.admin.until_quiet()
    return scrape_at_rest(operated.metrics_urls, "ray_expertmesh_")


@pytest.fixture(scope="module")
def after(operated: Operated, before: Scrape) -> Scrape:
    """After the load of this module, when everything about it has been exported."""

    async def load() -> None:
        async with operated.user.clients() as clients:
            ways = (clients.http_whole, clients.http_stream, clients.grpc_whole, clients.grpc_stream)
            answers = await asyncio.gather(*(ways[i % 4](call) for i, call in enumerate(CALLS)))
            assert [len(answer.token_ids) for answer in answers] == [N_TOKENS] * len(CALLS)
            with pytest.raises(openai.BadRequestError):
                await clients.http_whole(Call((5,), 10**9))
            await clients.grpc_stream(Call((5,), 2000), on_tokens=lambda n: n < 3)
        async with operated.anonymous.clients() as clients:
            with pytest.raises(grpc.RpcError):
                await clients.grpc_whole(CALLS[0])

    asyncio.run(load())

    def complete(found: Scrape) -> bool:
        n_ended = own(catalog.REQUESTS, found) - own(catalog.REQUESTS, before)
        at_rest = own(catalog.OPEN_REQUESTS, found) == own(catalog.RUNNING_REQUESTS, found) == 0
        sent, taken = (exchanged(before, found, process) for process in ("router", "experts"))
        # Processes tell each at its own time.
        return n_ended >= len(CALLS) + 2 and at_rest and 0 < sent == taken and _hot(found)

    return scrape_until(operated.metrics_urls, complete, "the load")


def grown(metric: Metric, before: Scrape, after: Scrape, suffix: str = "", **labels: str) -> float:
    return own(metric, after, suffix, **labels) - own(metric, before, suffix, **labels)


def exchanged(before: Scrape, after: Scrape, process: str) -> float:
    """Bytes of rows on their way to the hosts, as the routers or the hosts have counted them."""
    direction = "sent" if process == "router" else "received"
    return grown(catalog.EXCHANGED_BYTES, before, after, process=process, direction=direction)


def _hot(found: Scrape) -> list[tuple[dict[str, str], float]]:
    return found.series(catalog.HOT_EXPERT_LOAD.exported, application="operated")


def test_requests_are_counted_exactly_by_outcome_and_face(before: Scrape, after: Scrape) -> None:
    for face in ("http", "grpc"):
        assert grown(catalog.REQUESTS, before, after, face=face, outcome="completed") == len(CALLS) / 2
    assert grown(catalog.REQUESTS, before, after, face="http", outcome="refused") == 1
    assert grown(catalog.REQUESTS, before, after, face="grpc", outcome="cancelled") == 1
    assert grown(catalog.REQUESTS, before, after, outcome="failed") == 0
    assert grown(catalog.REFUSALS, before, after, reason="invalid") == 1
    assert grown(catalog.REFUSALS, before, after, reason="invalid_api_key") == 1
    assert grown(catalog.TIME_TO_FIRST_TOKEN, before, after, "_count") == len(CALLS) + 1
    assert grown(catalog.REQUEST_SECONDS, before, after, "_count") == len(CALLS)


def test_tokens_are_counted_exactly(before: Scrape, after: Scrape) -> None:
    assert grown(catalog.PROMPT_TOKENS, before, after) == len(CALLS) * N_PROMPT + 1
    n_sure = len(CALLS) * N_TOKENS
    output = grown(catalog.OUTPUT_TOKENS, before, after)
    assert n_sure + 3 <= output < n_sure + 2000, "and some of the one that was cancelled"
    # The last token of an answer is drawn, and computed by nobody.
    computed = grown(catalog.COMPUTED_TOKENS, before, after)
    assert computed >= len(CALLS) * (N_PROMPT + N_TOKENS - 1)
    assert grown(catalog.COMPUTED_TOKENS, before, after, phase="prefill") >= len(CALLS) * (N_PROMPT - 1)


def test_steps_rows_and_bytes_agree_with_each_other(before: Scrape, after: Scrape) -> None:
    assert grown(catalog.STEP_SECONDS, before, after, "_count") == grown(
        catalog.BATCH, before, after, "_count"
    )
    hosts = {labels["replica"] for labels, _ in after.series(catalog.HOST_ROWS.exported, process="experts")}
    assert len(hosts) >= 2
    assert exchanged(before, after, "router") == exchanged(before, after, "experts") > 0
    parts = {labels["part"] for labels, _ in after.series(catalog.DECODE_PART_SECONDS.exported)}
    assert {"schedule", "wait", "experts"} <= parts


def test_the_coordinator_tells_of_the_generation_and_of_hot_experts(after: Scrape) -> None:
    assert own(catalog.LIVE, after) == 1
    assert own(catalog.GENERATION, after) >= 1
    assert own(catalog.MEMBERS, after, role="experts") == 2
    assert own(catalog.MEMBERS, after, role="gateway") == 1
    assert own(catalog.TARGETS, after, deployment="router") == 1
    assert own(catalog.CHANGES, after, outcome="live") >= 1
    assert 0 < own(catalog.BALANCEDNESS, after) <= 1
    assert own(catalog.EXPERT_SLOTS, after) >= own(catalog.EXPERTS, after) > 0
    hot = after.series(catalog.HOT_EXPERT_LOAD.exported)
    assert all(load >= 1 for _, load in hot)
    assert all(labels["layer"].isdigit() and labels["expert"].isdigit() for labels, _ in hot)


def test_everything_that_is_always_there_is_there(after: Scrape) -> None:
    missing = {name for metric in ALWAYS for name in metric.series} - after.names
    assert missing == set()


def test_series_have_the_labels_that_the_catalogue_says(operated: Operated, after: Scrape) -> None:
    for metric in CATALOG:
        for labels, _ in after.series(metric.series[0], application="operated"):
            assert labels["model"] == operated.admin.config.served_name
            assert labels["process"] in metric.processes
            assert {"replica", *metric.labels} <= labels.keys()


def test_losses_are_told_and_gauges_of_who_is_gone_go_away(operated: Operated, after: Scrape) -> None:
    """A gateway dies and an expert host freezes; then nothing that alerts or dashboards name is missing."""
    [(labels, _)] = after.series(catalog.OPEN_REQUESTS.exported, application="operated")
    gone = labels["replica"]
    generation = operated.admin.topology().generation
    frozen = operated.admin.replica_pids("experts")[0]
    os.kill(frozen, signal.SIGSTOP)
    ray.kill(ray.get_actor(_actor_of("gateway"), namespace="serve"), no_restart=False)

    def told(found: Scrape) -> bool:
        names = {labels["replica"] for labels, _ in found.series(catalog.OPEN_REQUESTS.exported)}
        return (
            gone not in names
            and len(names) == 1
            and own(catalog.DEADLINE_MISSES, found, role="experts", deadline="heartbeat") == 1
            and own(catalog.RECOVERIES, found, cause="frozen") == 1
            and own(catalog.LIVE, found) == 1
            and own(catalog.NOT_LIVE_SECONDS, found) > 0
        )

    scrape_until(operated.metrics_urls, told, "the losses")
    operated.admin.until_complete(above=generation)
    named = set().union(*map(metric_names, [*_dashboard_expressions(), *_alert_expressions()]))
    # Serve counts no failed health check before there is one.
    named -= {"ray_serve_health_check_failures_total"}
    # Gauges live for two of this cluster's short export intervals, and Serve and Ray's agent set theirs
    # less often; that of balance is gone until the new generation has routed something.
    seen = set(after.names)

    def all_seen(found: Scrape) -> bool:
        seen.update(found.names)
        return named <= seen

    scrape_until(operated.metrics_urls, all_seen, "what dashboards and alerts name")


def _dashboard_expressions() -> list[str]:
    found: list[str] = []
    for path in (REPOSITORY / "helm" / "dashboards").glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"] for target in panel.get("targets", [])]
    return [e.replace("$__rate_interval", "1m") for e in found]


def _alert_expressions() -> list[str]:
    """The names in the rules' template; tests/helm parses the rendered rules."""
    text = (REPOSITORY / "helm" / "templates" / "prometheusrule.yaml").read_text()
    names = set(re.findall(r"\bray_[a-z0-9_]+(?:\{\{ \$protocol \}\}[a-z0-9_]+)?", text))
    return sorted(n.replace("{{ $protocol }}", p) for n in names for p in ("http", "grpc"))


def _actor_of(deployment: str) -> str:
    prefix = f"SERVE_REPLICA::operated#{deployment}#"
    [name] = [name for name in actor_names("serve") if name.startswith(prefix)]
    return name
