"""What one wave of requests took, and the figures that follow from it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """One request as its client saw it; times are `time.perf_counter` seconds."""

    submitted_s: float
    token_times_s: tuple[float, ...]
    """When each output token arrived; tokens of one message share a time."""
    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.token_times_s) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} tokens but {len(self.token_times_s)} times")
        if not self.token_ids:
            raise ValueError("a request without output tokens has no timing")


@dataclass(frozen=True, slots=True)
class WaveTiming:
    """Requests that were sent at once; as many as the concurrency."""

    requests: tuple[RequestTiming, ...]

    @property
    def n_tokens(self) -> int:
        """Output tokens of all requests."""
        return sum(len(request.token_ids) for request in self.requests)

    @property
    def duration_s(self) -> float:
        """From the first request's sending to the last token."""
        return max(r.token_times_s[-1] for r in self.requests) - min(r.submitted_s for r in self.requests)

    @property
    def output_tokens_per_s(self) -> float:
        """End to end: prefill and queueing count."""
        return self.n_tokens / self.duration_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        """The rate while every request decodes: from the last first token on.

        None when nothing arrives behind it, as when the first requests are done before the last starts.
        """
        start_s = max(r.token_times_s[0] for r in self.requests)
        n_behind = sum(1 for r in self.requests for t in r.token_times_s if t > start_s)
        end_s = max(r.token_times_s[-1] for r in self.requests)
        return n_behind / (end_s - start_s) if n_behind else None

    @property
    def ttfts_ms(self) -> list[float]:
        """Time to first token of each request."""
        return [(r.token_times_s[0] - r.submitted_s) * 1e3 for r in self.requests]

    @property
    def gaps_ms(self) -> list[float]:
        """Times between successive tokens, of all requests."""
        return [(b - a) * 1e3 for r in self.requests for a, b in pairwise(r.token_times_s)]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is reported for one engine, transport, precision, prompt length and concurrency."""

    output_tokens_per_s: float
    """Median over the waves."""
    output_tokens_per_s_min: float
    output_tokens_per_s_max: float
    decode_tokens_per_s: float | None
    ttft_p50_ms: float
    ttft_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    n_waves: int


def percentile(values: Iterable[float], percent: float) -> float:
    """The value below which `percent` of them lie, linear between neighbours; raises on no values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values to take a percentile of")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be within 0 and 100, not {percent}")
    position = (len(ordered) - 1) * percent / 100
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(waves: Sequence[WaveTiming]) -> Figures:
    """Rates are medians over waves; latencies are percentiles over the requests (or gaps) of all waves."""
    rates = [wave.output_tokens_per_s for wave in waves]
    decode_rates = [rate for wave in waves if (rate := wave.decode_tokens_per_s) is not None]
    ttfts_ms = [ms for wave in waves for ms in wave.ttfts_ms]
    gaps_ms = [ms for wave in waves for ms in wave.gaps_ms] or [0.0]
    return Figures(
        output_tokens_per_s=percentile(rates, 50),
        output_tokens_per_s_min=min(rates),
        output_tokens_per_s_max=max(rates),
        decode_tokens_per_s=percentile(decode_rates, 50) if decode_rates else None,
        ttft_p50_ms=percentile(ttfts_ms, 50),
        ttft_p99_ms=percentile(ttfts_ms, 99),
        gap_p50_ms=percentile(gaps_ms, 50),
        gap_p99_ms=percentile(gaps_ms, 99),
        n_waves=len(waves),
    )


def ratio(value: float | None, baseline: float | None) -> float | None:
    """How many times the baseline; None when either is missing or the baseline is 0."""
    if value is None or not baseline:
        return None
    return value / baseline
