"""Reads a stream of tokens out of server-sent events: raw bytes and their times of arrival. Pure.

Parsing happens when the wave is over: the client shares its cores with the engine that it measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from serving_bench.engine import EngineError

EVENT_END = b"\n\n"

Event = dict[str, Any]


def openai_tokens(event: Event) -> list[int]:
    """New output tokens of a chunk of OpenAI's completions, asked for with `return_token_ids`."""
    return [token for choice in event.get("choices", ()) for token in choice.get("token_ids") or ()]


def llama_tokens(event: Event) -> list[int]:
    """New output tokens of an event of llama.cpp's /completion, asked for with `return_tokens`."""
    return [] if event.get("stop") else list(event.get("tokens", ()))


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


def token_arrivals(
    chunks: Iterable[tuple[float, bytes]], tokens_of: Callable[[Event], list[int]] = openai_tokens
) -> tuple[list[float], list[int]]:
    """Times and ids of the output tokens of a stream.

    Raises:
        EngineError: an error event came, or the stream ended within an event.
    """
    times_s: list[float] = []
    token_ids: list[int] = []
    for time_s, raw_event in split_events(chunks):
        for line in raw_event.split(b"\n"):
            payload = line.removeprefix(b"data:").strip()
            if payload == line or payload == b"[DONE]":
                continue
            event: Event = json.loads(payload)
            if "error" in event:
                raise EngineError(f"the server answered an error: {event['error']}")
            new_ids = tokens_of(event)
            token_ids += new_ids
            times_s += [time_s] * len(new_ids)
    return times_s, token_ids
