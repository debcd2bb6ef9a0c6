"""One request in flight: its completions, its deadline, and when their news are worth a message."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from expertmesh.actors.gateway.completion import Completion, CompletionSpec
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError
from expertmesh.actors.gateway.feed.stream_watch import StreamWatch
from expertmesh.actors.gateway.requests import Delta, GenerationRequest
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.engine.request import SamplingParams
from expertmesh.proto.v1 import internal_pb2 as pb


class Host(Protocol):
    """What a request needs of the gateway's core."""

    tokenizer: TextTokenizer | None
    topology: pb.TopologyUpdate
    stream_watch: StreamWatch | None
    """Told of what completions receive, while somebody wants to know."""

    @property
    def stream_interval_s(self) -> float:
        """The least time between two deltas of one completion, first and last ones apart."""

    def place(self, completion: Completion) -> None:
        """Sends a completion to a router, or lets it wait for one."""

    def forget(self, completion: Completion) -> None:
        """A completion is over."""

    def next_request_id(self) -> str:
        """A name that no other request of any gateway has."""


class RequestRun:
    """A request in flight: all its completions, and the wait for their news.

    Args:
        core: places completions on routers.
        request: what to run.
        whole: only the ends of completions are waited for.
    """

    def __init__(self, core: Host, request: GenerationRequest, whole: bool) -> None:
        self._core = core
        self._request = request
        self._at_end = whole and not request.stop
        """Whether only a completion's end is news."""
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ready: dict[int, Completion] = {}
        self._has_news = asyncio.Event()
        self._expired = False
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(request.timeout_s, self._expire)
        self._completions = [self._new(index) for index in range(request.n_completions)]
        self._n_open = len(self._completions)
        for completion in self._completions:
            core.place(completion)

    @property
    def ended(self) -> bool:
        """Whether every completion has given its last delta."""
        return self._n_open == 0

    async def next(self) -> list[Delta]:
        """The next deltas, one for each completion that has news."""
        await self._has_news.wait()
        self._has_news.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due_s = asyncio.get_running_loop().time() + self._core.stream_interval_s
        if self._expired:
            raise self._timeout_error()
        ready, self._ready = self._ready, {}
        deltas = []
        for completion in ready.values():
            delta = completion.take()
            # A stop string may stand in what came before the error.
            if completion.error is not None and not completion.ended:
                raise completion.error
            deltas.append(delta)
            if completion.ended:
                self._n_open -= 1
                self._core.forget(completion)
        return deltas

    def close(self) -> None:
        """Frees what is still open."""
        self._deadline.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for completion in self._completions:
            if not completion.ended:
                completion.stop()
                self._core.forget(completion)

    def _new(self, index: int) -> Completion:
        request, core = self._request, self._core
        sampling = request.sampling[index % request.n]
        if index % request.n:
            sampling = _without_prompt_logprobs(sampling)
        spec = CompletionSpec(
            request_id=core.next_request_id(),
            index=index,
            prompt_token_ids=request.prompts[index // request.n],
            sampling=sampling,
            stop=request.stop,
            eos_token_ids=request.eos_token_ids,
            shown_special_ids=request.shown_special_ids,
            traceparent=request.record.traceparent if request.record is not None else "",
        )
        if core.stream_watch is not None:
            core.stream_watch.admitted(spec.request_id)
        clock = request.record.clock() if request.record is not None else None
        return Completion(spec, core.tokenizer, self._on_news, core.place, clock)

    def _on_news(self, completion: Completion) -> None:
        if self._core.stream_watch is not None:
            self._core.stream_watch.news(completion)
        self._ready[completion.spec.index] = completion
        if self._has_news.is_set():
            return
        loop = asyncio.get_running_loop()
        if completion.is_last or (not self._at_end and (completion.is_first or loop.time() >= self._due_s)):
            self._has_news.set()
        elif self._timer is None and not self._at_end:
            self._timer = loop.call_at(self._due_s, self._on_due)

    def _on_due(self) -> None:
        self._timer = None
        self._has_news.set()

    def _expire(self) -> None:
        self._expired = True
        self._has_news.set()

    def _timeout_error(self) -> GatewayError:
        waited_s = self._request.timeout_s
        topology = self._core.topology
        state = f"{topology.state}: {topology.reason}"
        if all(completion.attempt < 0 for completion in self._completions):
            message = f"no generation was live for {waited_s:g} s ({state})"
            return GatewayError(ErrorKind.UNAVAILABLE, message)
        n_tokens = sum(completion.n_tokens for completion in self._completions)
        message = f"the request's deadline of {waited_s:g} s passed after {n_tokens} generated tokens"
        if topology.state != "running":
            return GatewayError(ErrorKind.UNAVAILABLE, f"{message}: no generation is live ({state})")
        return GatewayError(ErrorKind.DEADLINE, message)


def _without_prompt_logprobs(sampling: SamplingParams) -> SamplingParams:
    """The first completion of a prompt has them already."""
    return replace(sampling, prompt_logprobs=None)
