"""Reads an OpenAI completion stream out of the raw bytes and their times of arrival. Pure.

Parsing happens when the wave is over: the client shares its cores with the engine that it measures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from serving_bench.engine import EngineError

EVENT_END = b"\n\n"


def split_events(chunks: Iterable[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """Server-sent events with the time at which each was whole.

    Args:
        chunks: (time of arrival, bytes) as they came from the socket, cut anywhere.

    Raises:
        EngineError: the stream ended within an event.
    """
    events = []
    rest = b""
    for time_s, chunk in chunks:
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(EVENT_END)
        events += [(time_s, event) for event in whole if event]
    if rest.strip():
        raise EngineError(f"the stream ended within an event: {rest[:200]!r}")
    return events


def token_arrivals(chunks: Iterable[tuple[float, bytes]]) -> tuple[list[float], list[int]]:
    """Times and ids of the output tokens of a completion that was streamed with `return_token_ids`.

    Raises:
        EngineError: an error event came, or the stream did not end with `[DONE]`.
    """
    times_s: list[float] = []
    token_ids: list[int] = []
    done = False
    for time_s, event in split_events(chunks):
        for line in event.split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            payload = line.removeprefix(b"data:").strip()
            if payload == b"[DONE]":
                done = True
                continue
            body: dict[str, Any] = json.loads(payload)
            if "error" in body:
                raise EngineError(f"the server answered an error: {body['error']}")
            for choice in body.get("choices", ()):
                new_ids = choice.get("token_ids") or []
                token_ids += new_ids
                times_s += [time_s] * len(new_ids)
    if not done:
        raise EngineError("the stream ended without [DONE]")
    return times_s, token_ids
