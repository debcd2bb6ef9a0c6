"""Streaming clients that use little of the processor: bytes are noted now and parsed later."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import grpc

from expertmesh.proto.v1 import inference_pb2
from serving_bench.engine import EngineError, Prompt
from serving_bench.sse import Event, openai_tokens, token_arrivals
from serving_bench.timing import RequestTiming, WaveTiming

REQUEST_DEADLINE_S = 600.0
GENERATE_STREAM = "/expertmesh.v1.Inference/GenerateStream"


class WaveClient(Protocol):
    """Sends a wave of requests over connections that stay open between waves."""

    async def run(self, prompts: Sequence[Prompt], n_out: int) -> WaveTiming:
        """Sends all prompts at once; greedy, `n_out` tokens each."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


@dataclass(frozen=True, slots=True)
class HttpDialect:
    """How a server wants to be asked, and where its answers have the tokens."""

    path: str
    body: Callable[[Prompt, int], dict[str, Any]]
    """(prompt, output tokens) to the JSON of a greedy request past end-of-sequence."""
    tokens_of: Callable[[Event], list[int]]
    keep_alive: bool = True
    """Whether connections stay open between waves."""


def openai_dialect(model: str) -> HttpDialect:
    """OpenAI's streaming completions with vLLM's extensions."""

    def body(prompt: Prompt, n_out: int) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": n_out,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }

    return HttpDialect("/v1/completions", body, openai_tokens)


class HttpClient:
    """Server-sent events over HTTP."""

    def __init__(self, base_url: str, dialect: HttpDialect) -> None:
        self._url = base_url + dialect.path
        self._dialect = dialect
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=not dialect.keep_alive),
            timeout=aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S),
        )

    async def run(self, prompts: Sequence[Prompt], n_out: int) -> WaveTiming:
        """See `WaveClient`. Raises EngineError when an answer is not a stream of `n_out` tokens."""
        bodies = [json.dumps(self._dialect.body(prompt, n_out)).encode() for prompt in prompts]
        streams = await asyncio.gather(*(self._stream(body) for body in bodies))
        requests = []
        for submitted_s, chunks in streams:
            times_s, token_ids = token_arrivals(chunks, self._dialect.tokens_of)
            requests.append(checked_timing(submitted_s, times_s, token_ids, n_out))
        return WaveTiming(tuple(requests))

    async def close(self) -> None:
        """Closes the session."""
        await self._session.close()

    async def _stream(self, body: bytes) -> tuple[float, list[tuple[float, bytes]]]:
        chunks: list[tuple[float, bytes]] = []
        submitted_s = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                if response.status != 200:
                    raise EngineError(f"HTTP {response.status}: {(await response.text())[:500]}")
                async for chunk in response.content.iter_any():
                    chunks.append((time.perf_counter(), chunk))
        except aiohttp.ClientError as error:
            raise EngineError(f"HTTP request to {self._url} failed: {error!r}") from error
        return submitted_s, chunks


class GrpcClient:
    """`expertmesh.v1.Inference.GenerateStream` on one channel."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        # No deserializer: messages are parsed when the wave is over.
        self._call = self._channel.unary_stream(GENERATE_STREAM)

    async def run(self, prompts: Sequence[Prompt], n_out: int) -> WaveTiming:
        """See `WaveClient`. Raises EngineError when an answer is not a stream of `n_out` tokens."""
        bodies = [self._body(prompt, n_out) for prompt in prompts]
        streams = await asyncio.gather(*(self._stream(body) for body in bodies))
        requests = []
        for submitted_s, messages in streams:
            times_s: list[float] = []
            token_ids: list[int] = []
            for time_s, message in messages:
                new_ids = inference_pb2.GenerateChunk.FromString(message).delta.token_ids
                token_ids += new_ids
                times_s += [time_s] * len(new_ids)
            requests.append(checked_timing(submitted_s, times_s, token_ids, n_out))
        return WaveTiming(tuple(requests))

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    def _body(self, prompt: Prompt, n_out: int) -> bytes:
        request = inference_pb2.GenerateRequest(
            prompt_token_ids=inference_pb2.TokenIds(ids=prompt),
            params=inference_pb2.SamplingParams(max_tokens=n_out, temperature=0.0, ignore_eos=True),
        )
        body: bytes = request.SerializeToString()
        return body

    async def _stream(self, body: bytes) -> tuple[float, list[tuple[float, bytes]]]:
        messages: list[tuple[float, bytes]] = []
        submitted_s = time.perf_counter()
        try:
            async for message in self._call(body, timeout=REQUEST_DEADLINE_S):
                messages.append((time.perf_counter(), message))
        except grpc.aio.AioRpcError as error:
            raise EngineError(f"gRPC {error.code().name}: {error.details()}") from error
        return submitted_s, messages


def checked_timing(
    submitted_s: float, times_s: Sequence[float], token_ids: Sequence[int], n_out: int
) -> RequestTiming:
    """A request's timing. Raises EngineError when it did not get exactly `n_out` tokens."""
    if len(token_ids) != n_out:
        raise EngineError(f"a request got {len(token_ids)} tokens instead of {n_out}")
    return RequestTiming(submitted_s, tuple(times_s), tuple(token_ids))
