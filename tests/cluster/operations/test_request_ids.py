"""A request's name and trace, from its client through gateway and router: in answers, logs and spans."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from otlp_receiver import ReceivedSpan
from serve_clients import Call, random_prompt
from serve_cluster import POLL_S, SETTLE_S

from expertmesh.proto.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from conftest import Operated

pytestmark = pytest.mark.xdist_group("operations")

N_TOKENS, STEPS_PER_SPAN = 20, 8
CLIENT_SPAN = "00f067aa0ba902b7"
PROMPT = random_prompt(30, 4096, 7)


def headers(name: str, trace_id: str) -> dict[str, str]:
    return {"x-request-id": name, "traceparent": f"00-{trace_id}-{CLIENT_SPAN}-01"}


def by_http(operated: Operated, name: str, trace_id: str) -> str:
    """Streams an answer; gives the request's name as the response has it."""

    async def call() -> str:
        async with operated.user.clients() as clients:
            raw = await clients.openai.completions.with_raw_response.create(
                model="",
                prompt=list(PROMPT),
                max_tokens=N_TOKENS,
                extra_body={"ignore_eos": True},
                extra_headers=headers(name, trace_id),
            )
            assert raw.parse().id.endswith(name)
            assert len(raw.headers.get_list("x-request-id")) == 1
            return raw.headers["x-request-id"]

    return asyncio.run(call())


def by_grpc(operated: Operated, name: str, trace_id: str) -> str:
    """The same over gRPC; the name stands in the trailing metadata."""

    async def call() -> str:
        async with operated.user.clients() as clients:
            request = pb.GenerateRequest(
                prompt_token_ids=pb.TokenIds(ids=PROMPT),
                params=pb.SamplingParams(max_tokens=N_TOKENS, ignore_eos=True),
            )
            metadata = (*clients.metadata, *headers(name, trace_id).items())
            pending = clients.inference.Generate(request, timeout=SETTLE_S, metadata=metadata)
            assert (await pending).request_id == name
            return dict(await pending.trailing_metadata())["x-request-id"]

    return asyncio.run(call())


def log_lines(name: str) -> list[dict[str, Any]]:
    """The JSON lines of all logs of the session that name a request, once there is one."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        lines = [
            json.loads(line)
            for path in folder.glob("worker-*.err")
            for line in path.read_text(errors="replace").splitlines()
            if name in line and line.startswith("{")
        ]
        if lines:
            return lines
        assert time.monotonic() < deadline_s, f"no log names {name}"
        time.sleep(POLL_S)


@pytest.mark.parametrize(
    ("face", "call", "trace_id"), [("http", by_http, "4b" * 16), ("grpc", by_grpc, "5c" * 16)]
)
def test_a_request_keeps_its_name_and_its_trace(
    operated: Operated, face: str, call: Any, trace_id: str
) -> None:
    name = f"named-by-client-{face}"
    assert call(operated, name, trace_id) == name

    [line] = log_lines(name)
    assert line["request_id"] == name
    assert line["trace_id"] == trace_id
    assert (line["application"], line["process"], line["level"]) == ("operated", "gateway", "info")
    assert (line["face"], line["outcome"], line["key"]) == (face, "completed", "service")
    assert (line["prompt_tokens"], line["output_tokens"], line["attempts"]) == (len(PROMPT), N_TOKENS, 1)
    assert 0 < line["first_token_s"] <= line["seconds"]
    assert "prompts" not in line

    def whole(spans: list[ReceivedSpan]) -> bool:
        return {"request", "route", "queue", "prefill", "decode"} <= {span.name for span in spans}

    spans = operated.spans.trace(trace_id, whole)
    [request] = [span for span in spans if span.name == "request"]
    [route] = [span for span in spans if span.name == "route"]
    parts = [span for span in spans if span.parent_id == route.span_id]
    assert (request.service, request.parent_id) == ("expertmesh-gateway", CLIENT_SPAN)
    assert (route.service, route.parent_id) == ("expertmesh-router", request.span_id)
    assert request.attributes["expertmesh.request_id"] == name
    assert request.attributes["expertmesh.outcome"] == "completed"
    assert request.events == ("placed", "first token")
    assert parts[0].name == "queue"
    assert sum(span.attributes["expertmesh.tokens"] for span in parts if span.name == "prefill") == len(
        PROMPT
    )
    decodes = [span.attributes["expertmesh.steps"] for span in parts if span.name == "decode"]
    # The prompt's last step draws the first token, and nobody computes the last one.
    assert decodes == [STEPS_PER_SPAN, STEPS_PER_SPAN, N_TOKENS - 1 - 2 * STEPS_PER_SPAN]
    assert all(a.begun_ns <= a.ended_ns for a in spans)
    assert request.begun_ns <= route.begun_ns
    assert all(
        route.begun_ns <= part.begun_ns and part.ended_ns <= request.ended_ns + 10**9 for part in parts
    )


def test_what_no_client_traces_is_not_traced(operated: Operated) -> None:
    before = operated.spans.n_spans

    async def call() -> None:
        async with operated.user.clients() as clients:
            await clients.http_whole(Call(PROMPT, 3))

    asyncio.run(call())
    trace_id = "6d" * 16
    by_grpc(operated, "traced-behind-it", trace_id)
    spans = operated.spans.trace(trace_id, lambda spans: len(spans) >= 7)
    assert operated.spans.n_spans == before + len(spans)
