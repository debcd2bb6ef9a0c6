"""What the gateway's streams bring, by a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from set_clock import SetClock

from expertmesh.actors.gateway.feed.stream_watch import StreamWatch, percentile


@pytest.fixture
def clock() -> SetClock:
    return SetClock(100.0)


@pytest.fixture
def watch(clock) -> StreamWatch:
    return StreamWatch(clock)


def completion(name: str, n_tokens: int):
    return SimpleNamespace(request_id=name, n_tokens=n_tokens)


def test_first_wait_gaps_and_tokens(watch, clock):
    watch.admitted("a")
    clock.now_s += 0.25
    watch.news(completion("a", 1))
    clock.now_s += 0.04
    watch.news(completion("a", 3))  # two tokens in one step
    clock.now_s += 0.02
    watch.news(completion("a", 4))
    figures = watch.take()
    assert figures.n_tokens == 4
    assert figures.first_waits_ms == pytest.approx((250,))
    assert figures.gaps_ms == pytest.approx((20, 40))
    assert watch.take().n_tokens == 0


def test_a_gap_goes_on_over_two_takes(watch, clock):
    watch.admitted("a")
    watch.news(completion("a", 1))
    watch.take()
    clock.now_s += 3
    assert watch.take().gaps_ms == ()
    clock.now_s += 1
    watch.news(completion("a", 2))
    assert watch.take().gaps_ms == pytest.approx((4000,))


def test_a_completion_that_began_before_counts_from_its_first_news_on(watch, clock):
    watch.news(completion("old", 50))
    clock.now_s += 0.1
    watch.news(completion("old", 51))
    figures = watch.take()
    assert (figures.n_tokens, figures.first_waits_ms) == (1, ())
    assert figures.gaps_ms == pytest.approx((100,))


def test_news_without_tokens_are_no_gap_and_an_ended_one_is_forgotten(watch, clock):
    watch.admitted("a")
    watch.news(completion("a", 1))
    clock.now_s += 1
    watch.news(completion("a", 1))  # its end
    watch.ended("a")
    assert watch.take().gaps_ms == ()
    assert watch._seen == {}


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.25, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)]
)
def test_percentile(share, value):
    assert percentile((1, 2, 3, 4), share) == value


def test_percentile_of_nothing():
    assert percentile((), 0.5) is None
