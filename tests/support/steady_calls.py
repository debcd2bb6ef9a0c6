"""The same calls over and over while something is done to a deployment, and whether anybody noticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from serve_clients import Answer, Call, random_prompt
from serve_cluster import Deployment

VOCAB = 4096
BEGUN_TOKENS = 3
CHUNKS_PER_S = 20
"""For a deployment under steady calls: every message costs Serve, the gateway and the client, who all take
it from the cores on which the processes start that these tests wait for."""
COALESCING = f"gateway.stream_chunks_per_s={CHUNKS_PER_S}"
NICENESS = 10
"""Of processes under steady calls: they compute without a pause, and leave the cores to what starts and to
the tests beside."""

Expected = Sequence[Sequence[int]]
"""The tokens of every call when nothing is done."""


def make_calls(n: int, first_tokens: int, more_tokens: int = 0) -> list[Call]:
    """Greedy and sampled in turn, with prompts and answers of different lengths."""
    return [
        Call(
            random_prompt(5 + 9 * i, VOCAB, seed=i),
            first_tokens + more_tokens * i,
            temperature=0.8 * (i % 2),
            seed=i,
        )
        for i in range(n)
    ]


class SteadyCalls:
    """Calls to one deployment, each by a client of its own that sends it again and again.

    Half of the clients speak gRPC, the others HTTP.

    Args:
        deployment: where they go.
        calls: a client's each.
        pauses: of each client behind an answer, as a multiple of the time that the answer took.
    """

    def __init__(self, deployment: Deployment, calls: Sequence[Call], pauses: float = 1.0) -> None:
        self._deployment = deployment
        self._calls = calls
        self._pauses = pauses

    def alone(self) -> list[list[int]]:
        """The tokens of every call while nothing is done."""
        answers = dict(self.during(lambda: None))
        return [answers[i].token_ids for i in range(len(self._calls))]

    def during(self, act: Callable[[], None]) -> list[tuple[int, Answer]]:
        """Runs `act` once all streams have tokens; the answers (with the call's index) to all calls that
        were sent before it ended."""
        return asyncio.run(self._during(act))

    async def _during(self, act: Callable[[], None]) -> list[tuple[int, Answer]]:
        topology = await asyncio.to_thread(self._deployment.topology)
        for member in (*topology.routers, *topology.experts):
            _be_nice(member.pid)
        enough, flowing = asyncio.Event(), asyncio.Event()
        flow = asyncio.create_task(self._flow(enough, flowing))
        begun = asyncio.create_task(flowing.wait())
        try:
            await asyncio.wait({flow, begun}, return_when=asyncio.FIRST_COMPLETED)
            if not flow.done():
                await asyncio.to_thread(act)
        finally:
            begun.cancel()
            enough.set()
            answers = await flow
        return answers

    async def _flow(self, enough: asyncio.Event, flowing: asyncio.Event) -> list[tuple[int, Answer]]:
        begun: set[int] = set()

        def on_tokens(index: int, n_tokens: int) -> bool:
            if n_tokens >= BEGUN_TOKENS:
                begun.add(index)
            if len(begun) == len(self._calls):
                flowing.set()
            return True

        async with self._deployment.clients() as clients:

            async def client(index: int) -> list[tuple[int, Answer]]:
                face = (clients.grpc_stream, clients.http_stream)[index % 2]
                answers = []
                while not enough.is_set():
                    begun_s = time.monotonic()
                    answer = await face(self._calls[index], lambda n_tokens: on_tokens(index, n_tokens))
                    answers.append((index, answer))
                    with contextlib.suppress(TimeoutError):
                        pause_s = self._pauses * (time.monotonic() - begun_s)
                        await asyncio.wait_for(enough.wait(), pause_s)
                return answers

            rounds = await asyncio.gather(*(client(i) for i in range(len(self._calls))))
        return [answer for answers in rounds for answer in answers]


def _be_nice(pid: int) -> None:
    """Raises the niceness of every thread of a process; those that they start inherit it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)


def check(answers: Sequence[tuple[int, Answer]], expected: Expected) -> None:
    """Every call was answered, whole and token for token as expected."""
    assert {index for index, _ in answers} == set(range(len(expected)))
    for index, answer in answers:
        assert answer.finish_reason == "length"
        assert answer.token_ids == expected[index], f"call {index}"
