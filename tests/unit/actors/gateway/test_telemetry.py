"""What a gateway counts of its requests, whatever becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from metric_record import MetricRecord

from expertmesh.actors.gateway.access.gate import Caller, Gate, named_id
from expertmesh.actors.gateway.access.keys import Keyring
from expertmesh.actors.gateway.access.level import Access
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.requests import RawParams, RawRequest
from expertmesh.actors.gateway.telemetry import GatewayTelemetry, RequestRecord
from expertmesh.cluster.metrics import catalog
from expertmesh.configs.schema import LimitsConfig

pytestmark = pytest.mark.anyio

CALLER = Caller(Access.USER, request_id="from-a-header")


def told(core) -> MetricRecord:
    record = MetricRecord()
    core.telemetry.tell(record, core.n_outstanding, core.n_waiting)
    return record


async def run(core, max_tokens: int = 5, **fields) -> RequestRecord:
    """A recorded request, to its end."""
    record = core.telemetry.begin("grpc", CALLER)
    raw = RawRequest(
        prompts=((5, 6, 7),), params=RawParams(max_tokens=max_tokens, ignore_eos=True), **fields
    )
    request = await core.validate(record.named(raw))
    async for _ in core.generate(request):
        pass
    return record


@pytest.fixture
def counting() -> Callable:
    return lambda submit: [9] * 100


async def test_a_request_that_completes(gateway, counting):
    core = await gateway.serving(await gateway.router(counting))
    record = await run(core)
    assert (record.outcome, record.n_prompt_tokens, record.n_output_tokens) == ("completed", 3, 5)
    assert record.request_id == "from-a-header"
    assert record.first_token_s is not None
    assert 0 <= record.first_token_s <= record.seconds
    figures = told(core)
    assert figures.value(catalog.REQUESTS, face="grpc", outcome="completed") == 1
    assert figures.value(catalog.PROMPT_TOKENS) == 3
    assert figures.value(catalog.OUTPUT_TOKENS) == 5
    assert figures.count(catalog.TIME_TO_FIRST_TOKEN) == 1
    assert figures.count(catalog.TOKEN_GAP) == 4
    assert figures.count(catalog.REQUEST_SECONDS) == 1
    assert figures.value(catalog.OPEN_REQUESTS) == 0


async def test_the_bodys_own_name_of_a_request_wins(gateway, counting):
    core = await gateway.serving(await gateway.router(counting))
    assert (await run(core, request_id="mine")).request_id == "mine"


async def test_a_refusal_is_counted_once_with_its_reason(gateway, counting):
    core = await gateway.serving(await gateway.router(counting), limits=LimitsConfig(max_output_tokens=4))
    with pytest.raises(GatewayError):
        await run(core, max_tokens=5)
    with pytest.raises(GatewayError):
        await run(core, model="another")
    figures = told(core)
    assert figures.value(catalog.REQUESTS, face="grpc", outcome="refused") == 2
    assert figures.value(catalog.REFUSALS, reason="invalid") == 1
    assert figures.value(catalog.REFUSALS, reason="model_not_found") == 1
    assert figures.value(catalog.PROMPT_TOKENS) == 0


async def test_a_full_queue_refuses(gateway, counting):
    core = gateway.core(limits=LimitsConfig(max_queued_requests=1))
    first = asyncio.create_task(run(core))
    while not core.n_outstanding:
        await asyncio.sleep(0)
    with pytest.raises(GatewayError):
        await run(core)
    figures = told(core)
    assert figures.value(catalog.REFUSALS, reason="queue_full") == 1
    assert (figures.value(catalog.OPEN_REQUESTS), figures.value(catalog.WAITING_REQUESTS)) == (1, 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert told(core).value(catalog.REQUESTS, face="grpc", outcome="cancelled") == 1


async def test_a_deadline_is_a_failure_not_a_refusal(gateway):
    core = gateway.core()
    with pytest.raises(GatewayError):
        await run(core, timeout_s=0.01)
    figures = told(core)
    assert figures.value(catalog.REQUESTS, face="grpc", outcome="failed") == 1
    assert figures.value(catalog.FAILURES, reason="unavailable") == 1


async def test_who_closes_the_stream_early_has_cancelled(gateway, counting):
    router = await gateway.router(counting)
    core = await gateway.serving(router)
    record = core.telemetry.begin("http", CALLER)
    raw = RawRequest(prompts=((5,),), params=RawParams(max_tokens=50, ignore_eos=True))
    stream = core.generate(await core.validate(record.named(raw)))
    await anext(stream)
    router.go.clear()
    await stream.aclose()
    assert record.outcome == "cancelled"
    assert told(core).value(catalog.REQUESTS, face="http", outcome="cancelled") == 1


async def test_a_move_to_another_router_is_counted_and_its_tokens_once(gateway, counting, topology):
    dying = await gateway.router(counting)
    dying.die_after_tokens = 2
    core = await gateway.serving(dying)
    running = asyncio.create_task(run(core, max_tokens=6))
    await dying.until(lambda router: bool(router.submits))
    other = await gateway.router(counting)
    core.on_topology(topology(other, number=2))
    record = await running
    assert (record.outcome, record.n_output_tokens) == ("completed", 6)
    assert record.n_moves >= 1
    assert told(core).value(catalog.RESUMED) == record.n_moves


async def test_calls_without_a_key_are_refusals():
    telemetry = GatewayTelemetry()
    gate = Gate(lambda: Keyring(()), on_refusal=telemetry.not_admitted)
    with pytest.raises(GatewayError) as refused:
        gate.admit({}, Access.USER)
    assert refused.value.kind is ErrorKind.UNAUTHENTICATED
    record = MetricRecord()
    telemetry.tell(record, 0, 0)
    assert record.value(catalog.REFUSALS, reason="invalid_api_key") == 1


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "line\nbreak", "é"])
def test_names_that_cannot_stand_in_a_log_are_not_taken(name):
    assert named_id({"x-request-id": name}) == ""


def test_callers_bring_their_names_and_traces():
    caller = Gate().admit({"x-request-id": "r-1", "traceparent": "00-ab-cd-01"}, Access.USER)
    assert (caller.request_id, caller.traceparent) == ("r-1", "00-ab-cd-01")
