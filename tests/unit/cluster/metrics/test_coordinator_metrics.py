"""What the coordinator tells of changes, losses and load, from a real state machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_member import member_info
from membership_driver import Driver
from metric_record import MetricRecord

from expertmesh.cluster.autoscaling import Decision
from expertmesh.cluster.load import Load, LoadTable
from expertmesh.cluster.metrics import catalog
from expertmesh.cluster.metrics.coordinator import (
    CoordinatorMetrics,
    Observation,
    balancedness,
    hottest_experts,
)
from expertmesh.cluster.types import Role
from expertmesh.configs.observability import MetricsConfig


class Watched(Driver):
    """A machine with metrics, as the coordinator feeds them."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.record = MetricRecord()
        self.metrics = CoordinatorMetrics(self.record, MetricsConfig(**settings), n_experts=8)
        self.loads = LoadTable(n_experts=4)

    def take(self, actions) -> None:
        super().take(actions)
        self.metrics.saw(self.machine.view().last_change, self.machine.take_deadline_misses())

    def tell(self, *members: str, targets: dict[str, int] | None = None) -> MetricRecord:
        infos = [replace(member_info(name), slots=6 if name[0] == "e" else 0) for name in members]
        observation = Observation(self.machine.view(), infos, self.loads, targets or {})
        self.metrics.tell(observation, self.now_s)
        return self.record


@pytest.fixture
def running() -> Watched:
    d = Watched()
    d.join("e0", "r0", "e1")
    d.prepared(1, "r0", "e0", "e1")
    return d


def test_a_start_is_a_change_and_the_generation_is_told(running):
    record = running.tell("g0", "r0", "e0", "e1", targets={"experts": 2})
    assert record.value(catalog.CHANGES, kind="start", outcome="live") == 1
    assert record.count(catalog.CHANGE_SECONDS, kind="start", outcome="live") == 1
    assert record.value(catalog.LIVE) == 1
    assert record.value(catalog.GENERATION) == 1
    assert [record.value(catalog.MEMBERS, role=r) for r in ("gateway", "router", "experts")] == [1, 1, 2]
    assert record.value(catalog.TARGETS, deployment="experts") == 2
    assert (record.value(catalog.EXPERT_SLOTS), record.value(catalog.LARGEST_HOST_SLOTS)) == (12, 6)
    assert record.value(catalog.EXPERTS) == 8


def test_a_loss_is_a_recovery_with_its_cause_and_time_without_a_generation_counts(running):
    running.tell("r0", "e0", "e1")
    running.take(running.machine.left("e1", running.now_s))
    running.now_s += 2
    record = running.tell("r0", "e0")
    assert record.value(catalog.LIVE) == 0
    assert record.value(catalog.MEMBERS, role="experts") == 0
    running.abandoned(1, "r0", "e0")
    running.prepared(2, "r0", "e0")
    running.now_s += 5
    running.tell("r0", "e0")
    assert record.value(catalog.NOT_LIVE_SECONDS) == 2
    assert record.value(catalog.RECOVERIES, cause="lost") == 1
    assert record.value(catalog.CHANGES, kind="recovery", outcome="live") == 1
    assert record.value(catalog.GENERATION) == 2


def test_a_frozen_member_is_named_with_the_deadline_that_it_missed(running):
    running.tick_after(10.0, heard=("r0", "e0"))
    running.abandoned(1, "r0", "e0")
    running.prepared(2, "r0", "e0")
    record = running.tell("r0", "e0")
    assert (
        record.value(catalog.DEADLINE_MISSES, deadline="heartbeat", role="experts", member="replica-e1")
        == 1
    )
    assert record.value(catalog.RECOVERIES, cause="frozen") == 1


def test_a_change_that_is_not_prepared_in_time_is_rolled_back_and_names_who_was_late(running):
    running.join("e2")
    running.tick_after(0.3, heard=("r0", "e0", "e1", "e2"))
    assert running.preparing()
    running.prepared(2, "r0", "e0", "e1")
    for _ in range(4):
        running.tick_after(7.6, heard=("r0", "e0", "e1", "e2"))
    record = running.tell("r0", "e0", "e1", "e2")
    assert (
        record.value(catalog.DEADLINE_MISSES, deadline="prepare", role="experts", member="replica-e2") == 1
    )
    assert record.value(catalog.CHANGES, kind="scale", outcome="rolled back") == 1
    assert record.value(catalog.LIVE) == 1


def test_who_does_not_leave_a_generation_in_time_is_named(running):
    running.take(running.machine.left("e1", running.now_s))
    running.abandoned(1, "r0")
    running.tick_after(5.0, heard=("r0", "e0"))
    record = running.tell("r0")
    assert record.value(catalog.DEADLINE_MISSES, deadline="leave", role="experts", member="replica-e0") == 1


def test_scaling_and_accusations_are_counted(running):
    running.metrics.scaled(Decision("experts", 2, 3, "busy"), "by the autoscaler")
    running.metrics.scaled(Decision("experts", 3, 2, "asked for"), "by hand")
    running.metrics.accused(Role.ROUTER)
    record = running.tell("r0", "e0", "e1")
    up = {"deployment": "experts", "direction": "up", "by": "by the autoscaler"}
    assert record.value(catalog.SCALE_DECISIONS, **up) == 1
    assert record.value(catalog.SCALE_DECISIONS, deployment="experts", direction="down", by="by hand") == 1
    assert record.value(catalog.ACCUSATIONS, role="router") == 1


def report(d: Watched, expert_rows: tuple[int, ...], host_rows: tuple[int, ...]) -> None:
    d.loads.report("r0", Load(), d.now_s)
    load = Load(expert_rows=expert_rows, host_rows=host_rows, host_rows_generation=1)
    d.loads.report("r0", load, d.now_s + 1)


@pytest.mark.parametrize(("top", "every"), [(2, False), (0, False), (0, True)])
def test_hot_experts_are_bounded_and_the_rest_only_told_when_asked_for(top, every):
    d = Watched(expert_load_top=top, every_expert=every)
    d.join("e0", "r0", "e1")
    d.prepared(1, "r0", "e0", "e1")
    report(d, (1, 7, 2, 2, 3, 3, 3, 3), (8, 4, 6, 6))
    record = d.tell("r0", "e0", "e1")
    hot = {key: value for key, value in record.values.items() if key[0] == catalog.HOT_EXPERT_LOAD.name}
    assert len(hot) == top
    if top:
        assert record.value(catalog.HOT_EXPERT_LOAD, layer="0", expert="1") == pytest.approx(7 / 3)
    told = [value for key, value in record.values.items() if key[0] == catalog.LOGICAL_EXPERT_ROWS.name]
    assert sum(told) == (24 if every else 0)
    assert record.value(catalog.IMBALANCE) == pytest.approx(14 / 12)
    assert record.value(catalog.BALANCEDNESS) == pytest.approx((6 / 8 + 1) / 2)


def test_balancedness_leaves_out_layers_without_rows():
    assert balancedness([], 2) is None
    assert balancedness([0, 0, 3, 1], 2) == pytest.approx(2 / 3)
    assert balancedness([5], 0) is None


def test_the_hottest_of_all_layers_come_first():
    rows = [[5, 5, 0, 0], [1, 1, 1, 1], [0, 0, 8, 0], [0, 0, 0, 0]]
    assert hottest_experts(rows, 3) == [(4.0, 2, 2), (2.0, 0, 0), (2.0, 0, 1)]
    assert hottest_experts(rows, 0) == []
