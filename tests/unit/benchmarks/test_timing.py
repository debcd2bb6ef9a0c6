"""Rates, latencies and ratios out of arrival times."""

from __future__ import annotations

import numpy as np
import pytest
from serving_bench.timing import RequestTiming, WaveTiming, percentile, ratio, summarise


def request(submitted_s: float, *times_s: float) -> RequestTiming:
    return RequestTiming(submitted_s, times_s, tuple(range(len(times_s))))


@pytest.mark.parametrize("percent", [0, 1, 50, 90, 99, 100])
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_percentile_is_numpys(n: int, percent: float) -> None:
    values = np.random.default_rng(n).normal(size=n).tolist()
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_percentile_refuses_nothing_and_nonsense() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="101"):
        percentile([1.0], 101)


def test_end_to_end_rate_counts_prefill_and_decode_rate_does_not() -> None:
    wave = WaveTiming((request(10.0, 11.0, 11.5, 12.0), request(10.0, 11.0, 11.5, 12.0)))
    assert wave.output_tokens_per_s == pytest.approx(6 / 2)
    assert wave.decode_tokens_per_s == pytest.approx(4 / 1)
    assert wave.ttfts_ms == pytest.approx([1000, 1000])
    assert wave.gaps_ms == pytest.approx([500] * 4)


def test_decode_rate_starts_when_the_last_request_has_its_first_token() -> None:
    wave = WaveTiming((request(0.0, 1.0, 2.0, 3.0, 4.0), request(0.0, 2.5, 3.0, 4.0)))
    # Behind 2.5 s: two tokens of each, in 1.5 s.
    assert wave.decode_tokens_per_s == pytest.approx(4 / 1.5)


def test_no_decode_rate_when_requests_do_not_overlap() -> None:
    assert WaveTiming((request(0.0, 1.0, 2.0), request(0.0, 5.0))).decode_tokens_per_s is None


def test_summary_takes_the_median_wave_and_pools_latencies() -> None:
    waves = [WaveTiming((request(0.0, seconds / 2, seconds),)) for seconds in (1.0, 2.0, 8.0)]
    figures = summarise(waves)
    assert figures.output_tokens_per_s == pytest.approx(1.0)
    assert (figures.output_tokens_per_s_min, figures.output_tokens_per_s_max) == pytest.approx((0.25, 2.0))
    assert figures.ttft_p50_ms == pytest.approx(1000)
    assert figures.gap_p99_ms == pytest.approx(np.percentile([500, 1000, 4000], 99))
    assert figures.n_waves == 3


def test_one_token_answers_have_no_gaps() -> None:
    figures = summarise([WaveTiming((request(0.0, 1.0),))])
    assert (figures.gap_p50_ms, figures.decode_tokens_per_s) == (0.0, None)


def test_a_request_needs_a_time_for_each_token() -> None:
    with pytest.raises(ValueError, match="2 tokens but 1 times"):
        RequestTiming(0.0, (1.0,), (1, 2))
    with pytest.raises(ValueError, match="without output"):
        RequestTiming(0.0, (), ())


def test_ratio_is_missing_where_a_side_is() -> None:
    assert ratio(30.0, 20.0) == 1.5
    assert ratio(None, 20.0) is None
    assert ratio(30.0, None) is None
    assert ratio(30.0, 0.0) is None
