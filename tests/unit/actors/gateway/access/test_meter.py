"""Limits of keys, by a clock that the test moves."""

from __future__ import annotations

import pytest
from set_clock import SetClock

from expertmesh.actors.gateway.access.gate import UNCHECKED, Caller
from expertmesh.actors.gateway.access.keys import ApiKey, KeyLimits
from expertmesh.actors.gateway.access.level import Access
from expertmesh.actors.gateway.access.meter import Meter
from expertmesh.actors.gateway.errors import ErrorKind, GatewayError


@pytest.fixture
def clock() -> SetClock:
    return SetClock(1000.0)


@pytest.fixture
def meter(clock) -> Meter:
    return Meter(clock)


def caller(key_id: str = "a", **limits: int) -> Caller:
    return Caller(
        Access.USER, ApiKey(key_id, f"name of {key_id}", Access.USER, b"", limits=KeyLimits(**limits))
    )


def run(meter: Meter, who: Caller, n_prompt: int = 0, n_answer: int = 0) -> None:
    with meter.spend(who, n_prompt) as spending:
        spending.take_tokens(n_answer)


def refusal(meter: Meter, who: Caller) -> GatewayError:
    with pytest.raises(GatewayError) as refused:
        meter.check(who)
    assert refused.value.kind is ErrorKind.RATE_LIMITED
    return refused.value


def test_requests_a_minute(meter, clock):
    who = caller(requests_per_minute=6)
    for _ in range(6):
        run(meter, who)
    assert refusal(meter, who).retry_after_s == 10
    assert "'name of a' may send 6 requests" in refusal(meter, who).message
    clock.now_s += 9.9
    assert refusal(meter, who).retry_after_s == 1
    clock.now_s += 0.2
    run(meter, who)
    refusal(meter, who)


def test_tokens_of_the_last_request_are_owed(meter, clock):
    who = caller(tokens_per_minute=600)
    run(meter, who, 100, 400)
    run(meter, who, 50, 350)  # 100 are left, which lets it begin
    assert refusal(meter, who).retry_after_s == 31
    clock.now_s += 31
    meter.check(who)


def test_requests_at_once(meter):
    who = caller(concurrent_requests=2)
    with meter.spend(who, 1):
        with meter.spend(who, 1):
            assert refusal(meter, who).retry_after_s == 1
            with pytest.raises(GatewayError), meter.spend(who, 1):
                pass
        meter.check(who)
    with pytest.raises(ValueError, match="breaks"), meter.spend(who, 1):
        raise ValueError("breaks")
    with meter.spend(who, 1), meter.spend(who, 1):
        pass


def test_gateways_share_evenly_and_never_fall_to_nothing(meter, clock):
    who = caller(requests_per_minute=60, concurrent_requests=3)
    meter.set_gateways(4)
    for _ in range(15):
        run(meter, who)
    assert refusal(meter, who).retry_after_s == 4
    with meter.spend(caller("b", concurrent_requests=3), 1):
        refusal(meter, caller("b", concurrent_requests=3))
    meter.set_gateways(1)
    clock.now_s += 3
    run(meter, who)
    run(meter, who)


def test_a_key_whose_limits_change_keeps_what_it_has_used(meter):
    run(meter, caller(requests_per_minute=2))
    run(meter, caller(requests_per_minute=2))
    refusal(meter, caller(requests_per_minute=4))
    meter.check(caller())
    meter.check(caller("b", requests_per_minute=2))


def test_headers_tell_what_is_left(meter, clock):
    who = caller(requests_per_minute=60, tokens_per_minute=600)
    run(meter, who, 100, 20)
    assert meter.headers(who) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "480",
        "x-ratelimit-reset-tokens": "12s",
    }
    run(meter, who, 1000)
    assert meter.headers(who)["x-ratelimit-remaining-tokens"] == "0"
    assert meter.headers(caller()) == {} == meter.headers(UNCHECKED)


def test_who_has_no_limits_has_none(meter):
    for who in (UNCHECKED, caller()):
        for _ in range(100):
            run(meter, who, 10_000, 10_000)
