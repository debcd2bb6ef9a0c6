"""When experts are rebalanced by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expertmesh.cluster.balancing import BalanceTrigger, check_rebalance
from expertmesh.cluster.scaling import RebalanceRefusedError, ScalingFacts
from expertmesh.cluster.types import MemberInfo, Role
from expertmesh.configs.schema import BalanceConfig

HOSTS = tuple(MemberInfo(f"e{i}", Role.EXPERTS, "node", i, "cpu") for i in range(2))
SKEWED = ScalingFacts(
    members=HOSTS, n_experts=8, serving=True, steady=True, imbalance=1.6, window_rows=10_000
)


def test_by_imbalance_once_in_a_window() -> None:
    trigger = BalanceTrigger(BalanceConfig(max_imbalance=1.5, window_s=10.0), now_s=100.0)
    assert trigger.due(replace(SKEWED, imbalance=1.4), 101.0) is None
    assert trigger.due(SKEWED, 102.0) == (
        "the most loaded expert host has 1.60 times the mean load, more than 1.5"
    )
    assert trigger.due(SKEWED, 111.9) is None
    assert trigger.due(SKEWED, 112.0) is not None


def test_by_the_clock() -> None:
    trigger = BalanceTrigger(BalanceConfig(interval_s=30.0), now_s=100.0)
    even = replace(SKEWED, imbalance=1.0)
    assert trigger.due(even, 129.0) is None
    assert trigger.due(replace(even, steady=False), 130.0) is None
    assert trigger.due(even, 131.0) == "30 s have passed since the last time"
    assert trigger.due(even, 160.0) is None
    assert trigger.due(even, 161.0) is not None


def test_by_nothing_unless_configured() -> None:
    trigger = BalanceTrigger(BalanceConfig(), now_s=0.0)
    assert trigger.due(SKEWED, 1e6) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serving": False}, "no generation is live"),
        ({"n_experts": 0}, "nothing to move"),
        ({"members": HOSTS[:1]}, "one expert host alone"),
        (
            {"window_rows": 50},
            r"50 rows a MoE layer in the last 60 s, 4096 are needed",
        ),
    ],
)
def test_without_load_to_go_by_nothing_is_moved(change: dict[str, object], message: str) -> None:
    facts = replace(SKEWED, **change)
    config = BalanceConfig(max_imbalance=1.5, interval_s=1.0)
    with pytest.raises(RebalanceRefusedError, match=message):
        check_rebalance(config, facts)
    assert BalanceTrigger(config, now_s=0.0).due(facts, 1e6) is None
    check_rebalance(config, SKEWED)


def test_a_deployment_that_ends_is_left_alone() -> None:
    trigger = BalanceTrigger(BalanceConfig(interval_s=1.0), now_s=0.0)
    assert trigger.due(replace(SKEWED, draining=True), 10.0) is None
