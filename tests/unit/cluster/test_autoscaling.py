"""The autoscaler without a cluster: bounds, delays, hysteresis, hold, and policies that misbehave."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from expertmesh.cluster.autoscaling import (
    Autoscaler,
    BusyMeter,
    Contexts,
    Decision,
    DeploymentState,
    Policy,
    PolicyError,
    find_policy,
    load_policy,
    metrics_of,
    rounded,
)
from expertmesh.cluster.load import Load
from expertmesh.configs.schema import AutoscalingConfig, ReplicaBounds

CONFIG = AutoscalingConfig(
    enabled=True,
    upscale_delay_s=5.0,
    downscale_delay_s=60.0,
    hysteresis=0.1,
    manual_hold_s=300.0,
    router=ReplicaBounds(min_replicas=1, max_replicas=4),
    experts=ReplicaBounds(min_replicas=2, max_replicas=6),
    target_router_requests=10.0,
    target_router_queued_tokens=1000.0,
    target_experts_busy=0.5,
)


def state(target: int, current: int | None = None, fewest: int = 1, most: float = math.inf, **metrics: Any):
    return DeploymentState(target if current is None else current, target, fewest, most, metrics)


def wanting(**wishes: float) -> Policy:
    return lambda contexts: ({name: wishes[name] for name in contexts if name in wishes}, {})


def outcomes(scaler: Autoscaler, states: dict[str, DeploymentState], *at_s: float) -> list[Any]:
    """(before, after) of the one decision at each time, None where there is none."""
    made = [scaler.decide(states, now_s) for now_s in at_s]
    return [(found[0].before, found[0].after) if found else None for found in made]


def test_more_are_wanted_for_the_delay_without_a_break() -> None:
    wish = {"router": 3.0}
    scaler = Autoscaler(CONFIG, lambda contexts: (dict(wish), {}))
    states = {"router": state(1)}
    assert outcomes(scaler, states, 0.0, 4.9) == [None, None]
    wish["router"] = 1.0
    assert outcomes(scaler, states, 5.0) == [None]
    wish["router"] = 3.0
    assert outcomes(scaler, states, 6.0, 10.9, 11.0) == [None, None, (1, 3)]


def test_fewer_are_as_many_as_the_busiest_moment_of_the_delay_needed() -> None:
    wish = {"router": 0.5}
    scaler = Autoscaler(CONFIG, lambda contexts: (dict(wish), {}))
    states = {"router": state(4)}
    assert outcomes(scaler, states, 0.0) == [None]
    wish["router"] = 2.5
    assert outcomes(scaler, states, 30.0) == [None]
    wish["router"] = 0.0
    assert outcomes(scaler, states, 59.9, 60.0) == [None, (4, 3)]


@pytest.mark.parametrize(
    ("wish", "target", "count"),
    [
        (1.05, 1, 1),  # within the hysteresis
        (1.15, 1, 2),
        (2.0, 2, 2),
        (1.85, 2, 2),  # with 2 there is little left over, with 1 it would be too much
        (0.95, 2, 2),
        (0.85, 2, 1),
        (0.0, 2, 0),
        (2.2, 2, 2),
        (2.21, 2, 3),
        (1, 2, 1),  # a count is taken as it is
        (3, 2, 3),
    ],
)
def test_hysteresis(wish: float, target: int, count: int) -> None:
    assert rounded(wish, target, 0.1) == count


def test_going_down_never_asks_to_go_up_again() -> None:
    for target in range(1, 9):
        for hundredths in range(900):
            wish = hundredths / 100
            settled = max(rounded(wish, target, 0.1), 1)
            assert rounded(wish, settled, 0.1) in (settled, 0)


def test_bounds_of_configuration_model_and_cluster() -> None:
    def after(wish: float, target: int, **bounds: float) -> int:
        scaler = Autoscaler(CONFIG, wanting(experts=wish))
        states = {"experts": state(target, **bounds)}
        scaler.decide(states, 0.0)
        decisions = scaler.decide(states, 1000.0)
        return decisions[0].after if decisions else target

    assert after(50.0, 3) == 6
    assert after(0.0, 3) == 2
    assert after(0.0, 5, fewest=4) == 4
    assert after(50.0, 3, most=5) == 5
    assert after(50.0, 3, most=3) == 3
    # A person's number beyond the bounds is brought back, once it is no longer held.
    assert after(9.0, 9) == 6


def test_a_deployment_with_equal_bounds_is_left_alone_and_not_asked_for() -> None:
    asked = []

    def policy(contexts: Contexts) -> tuple[dict[str, int | float], dict[str, Any]]:
        asked.extend(contexts)
        return {}, {}

    Autoscaler(CONFIG, policy).decide({"gateway": state(1), "router": state(1)}, 0.0)
    assert asked == ["router"]


def test_what_a_person_has_set_is_held() -> None:
    scaler = Autoscaler(CONFIG, wanting(router=4.0, experts=6.0))
    states = {"router": state(2), "experts": state(2)}
    scaler.hold("router", 0.0)
    assert [d.deployment for t in (0.0, 5.0) for d in scaler.decide(states, t)] == ["experts"]
    assert scaler.decide({"router": state(2)}, 299.0) == []
    # Then the delay begins.
    assert outcomes(scaler, {"router": state(2)}, 300.0, 304.0, 305.0) == [None, None, (2, 4)]


def test_a_decision_tells_its_reason() -> None:
    scaler = Autoscaler(CONFIG, load_policy)
    loads = {"a": Load(running_requests=30, queued_requests=5, queued_tokens=900), "b": Load()}
    states = {"router": state(2, **metrics_of("router", loads, {"a": 0.9}))}
    scaler.decide(states, 0.0)
    [decision] = scaler.decide(states, 5.0)
    assert decision == Decision(
        "router",
        2,
        4,
        "the load asks for 3.5 for 5 s (requests 17.5 a replica, queued_requests 2.5 a replica, "
        "queued_tokens 450 a replica, busy 0.9 a replica)",
    )


def test_the_built_in_policy() -> None:
    def wanted(name: str, loads: dict[str, Load], busy: dict[str, float]) -> float:
        seen: list[float] = []

        def policy(contexts: Contexts) -> tuple[dict[str, int | float], dict[str, Any]]:
            wishes, states = load_policy(contexts)
            seen.append(wishes[name])
            return wishes, states

        config = CONFIG.model_copy(update={"gateway": ReplicaBounds(max_replicas=2)})
        Autoscaler(config, policy).decide({name: state(1, **metrics_of(name, loads, busy))}, 0.0)
        return seen[0]

    assert wanted("gateway", {"a": Load(outstanding_requests=512)}, {}) == 2.0
    assert wanted("router", {"a": Load(running_requests=5, queued_tokens=2500)}, {}) == 2.5
    assert wanted("experts", {"a": Load(), "b": Load()}, {"a": 0.9, "b": 0.6, "router": 1.0}) == 3.0


def test_the_built_in_policy_leaves_alone_what_it_knows_nothing_of() -> None:
    scaler = Autoscaler(CONFIG, load_policy)
    states = {name: state(3, **metrics_of(name, {}, {})) for name in ("router", "experts")}
    states["experts"] = state(3, **metrics_of("experts", {"a": Load()}, {}))
    assert [scaler.decide(states, now_s) for now_s in (0.0, 1000.0)] == [[], []]


def test_contexts_have_what_serve_policies_know() -> None:
    seen: list[Contexts] = []

    def policy(contexts: Contexts) -> tuple[dict[str, int | float], dict[str, Any]]:
        seen.append(contexts)
        return {"router": 3}, {"router": {"calls": len(seen)}}

    scaler = Autoscaler(CONFIG, policy)
    states = {"router": state(2, current=1, most=3, requests={"a": 4.0}, queued_requests={"a": 1.0})}
    for now_s in (0.0, 5.0, 6.0):
        scaler.decide(states, now_s)
    first, last = seen[0]["router"], seen[-1]["router"]
    assert (first.deployment_name, first.current_num_replicas, first.target_num_replicas) == (
        "router",
        1,
        2,
    )
    assert (first.total_num_requests, first.total_queued_requests) == (4.0, 1.0)
    assert (first.capacity_adjusted_min_replicas, first.capacity_adjusted_max_replicas) == (1, 3)
    assert (first.policy_state, first.last_scale_up_time, first.current_time) == ({}, None, 0.0)
    assert (last.policy_state, last.last_scale_up_time, last.last_scale_down_time) == (
        {"calls": 2},
        5.0,
        None,
    )
    assert first.config is CONFIG


@pytest.mark.parametrize(
    "answer",
    [
        lambda contexts: 1 / 0,
        lambda contexts: {"router": 3},
        lambda contexts: ({"router": "3"}, {}),
        lambda contexts: ({"router": True}, {}),
        lambda contexts: ({"router": math.nan}, {}),
        lambda contexts: ({"router": -1}, {}),
        lambda contexts: ({"gateway": 3}, {}),
        lambda contexts: None,
    ],
)
def test_a_policy_that_misbehaves_changes_nothing(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    scaler = Autoscaler(CONFIG, answer)
    with caplog.at_level(logging.ERROR):
        assert [scaler.decide({"router": state(1)}, now_s) for now_s in (0.0, 10.0, 20.0)] == [[], [], []]
    # Once, not at every round.
    [record] = caplog.records
    assert "the autoscaling policy expertmesh.cluster.autoscaling:load_policy failed" in record.message


def test_policies_are_found_by_name() -> None:
    assert find_policy(AutoscalingConfig().policy) is load_policy
    with pytest.raises(PolicyError, match=r"no_such_module:f: cannot be imported"):
        find_policy("no_such_module:f")
    with pytest.raises(PolicyError, match=r"expertmesh.cluster.autoscaling:none: cannot be imported"):
        find_policy("expertmesh.cluster.autoscaling:none")
    with pytest.raises(PolicyError, match="ROUNDING: is no function"):
        find_policy("expertmesh.cluster.autoscaling:ROUNDING")


def test_busy_shares_over_a_window() -> None:
    meter = BusyMeter(window_s=5.0)
    assert meter.shares({"a": 100.0}, 0.0) == {}
    assert meter.shares({"a": 100.5, "b": 7.0}, 1.0) == {"a": 0.5}
    assert meter.shares({"a": 102.0, "b": 7.0}, 4.0) == {"a": 0.5, "b": 0.0}
    # What is behind the window no longer counts; a counter that began anew is not below zero.
    shares = meter.shares({"a": 103.5, "b": 0.0}, 9.0)
    assert shares == {"a": pytest.approx(0.3), "b": 0.0}
    assert meter.shares({"a": 999.0}, 10.0) == {"a": 1.0}
