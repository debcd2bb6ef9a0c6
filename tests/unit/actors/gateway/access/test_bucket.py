"""The token bucket, by the clock that each test passes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmesh.actors.gateway.access.bucket import Bucket

RATES = st.floats(min_value=0.1, max_value=1e6)
PAUSES = st.lists(st.floats(min_value=0, max_value=300), max_size=60)
SLACK = 1e-6


@given(rate=RATES, pauses=PAUSES)
def test_nobody_gets_more_than_a_full_bucket_and_what_came_in_meanwhile(rate, pauses):
    bucket, now_s, n_taken = Bucket(rate, 0.0), 0.0, 0
    for pause_s in pauses:
        now_s += pause_s
        if bucket.wait_s(1.0, now_s) == 0:
            bucket.take(1.0, now_s)
            n_taken += 1
        assert n_taken <= (bucket.capacity + rate / 60 * now_s) * (1 + SLACK)


@given(rate=RATES, amounts=st.lists(st.floats(min_value=0, max_value=1e4), min_size=1, max_size=20))
def test_the_wait_is_as_long_as_told_and_no_longer(rate, amounts):
    bucket = Bucket(rate, 5.0)
    for amount in amounts:
        bucket.take(amount, 5.0)
    wait_s = bucket.wait_s(1.0, 5.0)
    assert bucket.level(5.0 + wait_s) >= 1.0 - SLACK * max(sum(amounts), 1)
    if wait_s > SLACK:
        halfway_s = 5.0 + wait_s / 2
        assert Bucket.wait_s(bucket, 1.0, halfway_s + wait_s) <= wait_s / 2 + SLACK * wait_s


@given(rate=RATES, other=RATES, taken=st.floats(min_value=0, max_value=1e4), pause_s=st.floats(0, 1e4))
def test_another_rate_gives_nothing_away(rate, other, taken, pause_s):
    bucket = Bucket(rate, 0.0)
    bucket.take(taken, 0.0)
    before = bucket.level(0.0)
    bucket.set_rate(other, 0.0)
    assert bucket.level(0.0) == min(before, bucket.capacity)
    assert bucket.level(pause_s) <= bucket.capacity


def test_a_small_share_lets_one_through_now_and_then():
    bucket = Bucket(0.5, 0.0)
    assert bucket.wait_s(1.0, 0.0) == 0
    bucket.take(1.0, 0.0)
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(120)


def test_a_clock_that_goes_back_gives_nothing():
    bucket = Bucket(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.level(40.0) == 0
    assert bucket.level(101.0) == pytest.approx(1)
