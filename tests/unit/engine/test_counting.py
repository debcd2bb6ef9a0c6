"""What routers count: by expert since the start, by host since the generation began."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expertmesh.engine.counting import RoutingCounter
from expertmesh.engine.exchange.header import StepAgreement, StepHeader
from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.rows import RowFormat
from expertmesh.engine.exchange.sharded import ShardedExchange
from expertmesh.engine.profile import PartTimer

CPU = torch.device("cpu")
N_EXPERTS, HIDDEN, TOP_K = 4, 2, 2
TWO_HOSTS = ((0, 1, 2), (3, 0))
"""Expert 0 has a copy on both hosts."""


class Nowhere:
    """A communicator whose dispatches nobody receives."""

    rank = 0
    device = CPU

    def all_to_all(self, *args: Any) -> None:
        return None


def exchange(generation: int, *hosts: tuple[int, ...]) -> ShardedExchange:
    members = ("R0", *(f"E{h}" for h in range(len(hosts))))
    return ShardedExchange(
        Nowhere(),  # type: ignore[arg-type]
        RankLayout(generation, 1, (hosts, hosts), members),
        RowFormat(HIDDEN, TOP_K, torch.float32),
        n_experts=N_EXPERTS,
        n_moe_layers=2,
    )


def dispatch(counter: RoutingCounter, over: Any, *ids: list[int]) -> None:
    if isinstance(over, ShardedExchange):
        over.begin(StepAgreement((StepHeader(over.generation, 0, tokens=3),)))
    watched = counter.watch(over)
    ids_TK = torch.tensor(ids)
    for layer in range(2):
        watched.dispatch(layer, torch.zeros(len(ids), HIDDEN), (ids_TK + layer) % N_EXPERTS)


def test_rows_count_once_they_are_committed() -> None:
    counter = RoutingCounter(2, N_EXPERTS, CPU)
    assert counter.host_rows() == (0, [])
    over = exchange(5, *TWO_HOSTS)
    dispatch(counter, over, [0, 1], [2, 1], [3, 1])
    assert counter.host_rows() == (5, [0] * 4)
    counter.commit()
    assert counter.rows() == [1, 3, 1, 1, 1, 1, 3, 1]
    generation, rows = counter.host_rows()
    assert generation == 5
    assert sum(rows[:2]) == sum(rows[2:]) == 6
    # Layer 0: expert 0 has one row, on either host.
    assert rows[:2] in ([5, 1], [4, 2])
    counter.commit()
    assert counter.host_rows() == (5, rows), "a commit counts once"


def test_an_interrupted_step_does_not_count_in_either_generation() -> None:
    counter = RoutingCounter(2, N_EXPERTS, CPU)
    dispatch(counter, exchange(5, (0, 1), (2, 3)), [0, 1])
    dispatch(counter, exchange(6, (0, 1, 2, 3)), [0, 1])
    counter.commit()
    assert counter.host_rows() == (6, [2, 2])
    assert counter.rows() == [1, 1, 0, 0, 0, 1, 1, 0]


def test_hosts_count_from_zero_in_every_generation() -> None:
    counter = RoutingCounter(2, N_EXPERTS, CPU)
    first = exchange(5, (0, 1), (2, 3))
    for _ in range(3):
        dispatch(counter, first, [0, 1])
        counter.commit()
    assert counter.host_rows() == (5, [6, 0, 3, 3])
    dispatch(counter, exchange(6, (3, 2), (1, 0)), [0, 1])
    counter.commit()
    assert counter.host_rows() == (6, [0, 2, 1, 1])
    assert sum(counter.rows()) == 16, "experts are counted on"


def test_nothing_is_counted_by_host_in_the_fused_mode() -> None:
    class Fused:
        combine = None

        def dispatch(self, *args: Any) -> None:
            return None

    counter = RoutingCounter(2, N_EXPERTS, CPU)
    dispatch(counter, Fused(), [0, 1])
    counter.commit()
    assert counter.host_rows() == (0, [])
    assert sum(counter.rows()) == 4


def test_busy_seconds_leave_out_the_exchange_and_interrupted_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now_s[0])
    timer = PartTimer()

    def step(**part_s: float) -> None:
        timer.begin()
        for part, seconds in part_s.items():
            now_s[0] += seconds
            timer.mark(part)

    step(wait=5, attention=2, dispatch=1, combine=7, head=1)
    timer.commit(decode=True)
    step(wait=1, attention=10)
    timer.commit(decode=False)
    step(attention=100)
    assert timer.busy_s == 13
    assert timer.profile().part_ms["wait"] == 5000, "of the decode step alone"
