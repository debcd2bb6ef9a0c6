"""The HTTP face, as clients of OpenAI and vLLM expect it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from expertmesh.actors.gateway.access.gate import Gate
from expertmesh.actors.gateway.access.http import caller_of, http_check
from expertmesh.actors.gateway.access.level import Access, needs
from expertmesh.actors.gateway.cluster_changes import ClusterChanges
from expertmesh.actors.gateway.cluster_routes import add_cluster_routes
from expertmesh.actors.gateway.core import GatewayCore
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.feed.feed import Feed
from expertmesh.actors.gateway.formats.interface import ChatFormat
from expertmesh.actors.gateway.openai_chat_render import Chat, ChatRenderer
from expertmesh.actors.gateway.openai_render import HTTP_STATUS, Renderer, error_body
from expertmesh.actors.gateway.openai_schema import ChatBody, CompletionBody, parse_body
from expertmesh.actors.gateway.page_files import add_page_routes
from expertmesh.actors.gateway.requests import Delta, GenerationRequest
from expertmesh.actors.gateway.telemetry import refusing
from expertmesh.actors.gateway.topology import topology_json
from expertmesh.proto.v1 import internal_pb2 as pb

T = TypeVar("T")

_RETRY_AFTER_S = 1
_PASSING = (ErrorKind.QUEUE_FULL, ErrorKind.UNAVAILABLE)
"""The same request may well be served a little later."""
_CLIENT_CLOSED_REQUEST = 499


def build_http_app(
    core: GatewayCore,
    chat_format: ChatFormat,
    fresh_topology: Callable[[], Awaitable[pb.TopologyUpdate]],
    changes: ClusterChanges,
    feed: Feed,
    gate: Gate | None = None,
) -> FastAPI:
    """The application. What each route needs is stated at it; without a statement nobody gets in.

    Args:
        core: generates.
        chat_format: the checkpoint's; without an encoder when it has none, or no tokenizer.
        fresh_topology: asks the coordinator for its state, load figures included.
        changes: what clients may change in the cluster.
        feed: what the live page shows.
        gate: admits callers; all of them when absent.
    """
    gate = gate or Gate()
    check = Depends(http_check(gate))
    app = FastAPI(title="expertmesh", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[check])
    started_s = int(time.time())
    completions = _CompletionRoutes(core, chat_format)
    app.add_api_route("/v1/completions", completions.completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", completions.chat, methods=["POST"], response_model=None)
    add_cluster_routes(app, changes, feed)
    add_page_routes(app)

    def model_json() -> dict[str, Any]:
        return {
            "id": core.card.name,
            "object": "model",
            "created": started_s,
            "owned_by": "expertmesh",
            "max_model_len": core.card.max_context_tokens,
        }

    @app.get("/v1/models")
    @needs(Access.USER)
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model_json()]})

    @app.get("/v1/models/{name:path}")
    @needs(Access.USER)
    async def model(name: str) -> JSONResponse:
        core.validator.check_model(name)
        return JSONResponse(model_json())

    @app.get("/health")
    @needs(Access.OPEN)
    async def health() -> JSONResponse:
        topology = core.topology
        state = "draining" if core.draining else topology.state
        body = {"state": state, "reason": topology.reason, "api_keys": gate.state}
        return JSONResponse(body, 200 if core.healthy else 503)

    @app.get("/v1/topology")
    @needs(Access.USER)
    async def topology() -> JSONResponse:
        return JSONResponse(topology_json(await fresh_topology(), core.card.n_experts))

    @app.exception_handler(GatewayError)
    async def on_gateway_error(request: Request, error: GatewayError) -> JSONResponse:
        limits = core.meter.headers(caller_of(request)) if error.kind is ErrorKind.RATE_LIMITED else {}
        return _error_response(error, limits)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        body = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": body}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def on_any_error(request: Request, error: Exception) -> JSONResponse:
        return _error_response(GatewayError(ErrorKind.INTERNAL, f"{type(error).__name__}: {error}"))

    return app


class _CompletionRoutes:
    """The two routes that generate."""

    def __init__(self, core: GatewayCore, chat_format: ChatFormat) -> None:
        self._core = core
        self._format = chat_format

    @needs(Access.USER)
    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`"""
        core = self._core
        record = core.telemetry.begin("http", caller_of(request))
        with refusing(record):
            body = parse_body(CompletionBody, await self._read(request))
            checked = await core.validate(record.named(body.to_raw()))
        renderer = Renderer(checked, core.card.name, core.tokenizer, bool(body.return_token_ids))
        return await self._answer(request, body, checked, renderer)

    @needs(Access.USER)
    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`"""
        core = self._core
        record = core.telemetry.begin("http", caller_of(request))
        with refusing(record):
            body = parse_body(ChatBody, await self._read(request))
            core.validator.check_model(body.model)
            prompt = body.to_prompt(self._format)
            checked = await core.validate(record.named(body.to_raw(prompt)))
        if core.tokenizer is not None:
            checked = replace(
                checked,
                stop=(*checked.stop, prompt.one_call) if prompt.one_call else checked.stop,
                shown_special_ids=core.tokenizer.special_ids(self._format.markers),
            )
        chat = Chat(self._format, prompt)
        renderer = ChatRenderer(chat, checked, core.card.name, core.tokenizer, bool(body.return_token_ids))
        return await self._answer(request, body, checked, renderer)

    async def _answer(
        self, http: Request, body: CompletionBody | ChatBody, request: GenerationRequest, renderer: Renderer
    ) -> Response:
        core = self._core
        if not body.streams:
            completions = await _unless_disconnected(http, core.complete(request))
            if completions is None:
                return Response(status_code=_CLIENT_CLOSED_REQUEST)
            return JSONResponse(
                renderer.whole(completions), headers=dict(core.meter.headers(request.caller))
            )
        return await self._stream(http, request, renderer, body.includes_usage)

    async def _stream(
        self, http: Request, request: GenerationRequest, renderer: Renderer, includes_usage: bool
    ) -> Response:
        stream = self._core.generate(request)
        # The first news decide the status: a refusal is an HTTP error, not an event in a stream.
        first = await _unless_disconnected(http, anext(stream))
        if first is None:
            await stream.aclose()
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        events = _events(first, stream, renderer, includes_usage)
        headers = {"Cache-Control": "no-cache", **self._core.meter.headers(request.caller)}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _read(self, request: Request) -> bytes:
        """The body, refused as soon as it is too large."""
        most = self._core.limits.max_body_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(most)
        parts, n_bytes = [], 0
        async for part in request.stream():
            n_bytes += len(part)
            if n_bytes > most:
                raise _too_large(most)
            parts.append(part)
        return b"".join(parts)


async def _events(
    first: list[Delta], stream: AsyncGenerator[list[Delta], None], renderer: Renderer, includes_usage: bool
) -> AsyncIterator[str]:
    async with aclosing(stream):
        if events := renderer.chunks(first):
            yield events
        try:
            async for deltas in stream:
                if events := renderer.chunks(deltas):
                    yield events
        except GatewayError as error:
            body = JSONResponse(error_body(error)).body
            yield f"data: {bytes(body).decode()}\n\n"
        else:
            if includes_usage:
                yield renderer.usage_chunk()
        yield "data: [DONE]\n\n"


async def _unless_disconnected(http: Request, work: Awaitable[T]) -> T | None:
    """The outcome of `work`; None, with the work cancelled, when the client goes away first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _too_large(most: int) -> GatewayError:
    return GatewayError(ErrorKind.TOO_LARGE, f"the body is larger than {most} bytes")


def _error_response(error: GatewayError, more_headers: Mapping[str, str] | None = None) -> JSONResponse:
    headers = dict(more_headers or {})
    if error.kind in _PASSING or error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s or _RETRY_AFTER_S)
    if error.kind is ErrorKind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), HTTP_STATUS[error.kind], headers)
