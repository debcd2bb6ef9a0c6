"""What the coordinator makes of load reports: rows within a window, by expert and by host."""

from __future__ import annotations

from typing import Any

import pytest
from fake_member import member_info
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmesh.cluster.load import N_SNAPSHOTS, Load, LoadTable
from expertmesh.cluster.placement.contiguous import contiguous_placement
from expertmesh.cluster.state import State, View
from expertmesh.cluster.topology import topology_update
from expertmesh.cluster.types import Generation

N_LAYERS, N_EXPERTS, N_HOSTS = 2, 4, 2
WINDOW_S = 20.0
IDLE = (0,) * (N_LAYERS * N_EXPERTS)


def generation(number: int = 3) -> Generation:
    members = tuple(member_info(n) for n in ("r0", "r1", "e0", "e1"))
    return Generation(number, members, contiguous_placement(N_LAYERS, N_EXPERTS, N_HOSTS), "r0:2")


def rows(*of_expert_0: int) -> tuple[int, ...]:
    """Rows of expert 0 in each layer; no other was chosen."""
    return tuple(n for rows in of_expert_0 for n in (rows, 0, 0, 0))


def of_expert_0(table: LoadTable) -> list[int] | None:
    window = table.window_expert_rows()
    return None if window is None else [layer[0] for layer in window]


@pytest.fixture
def table() -> LoadTable:
    """Routers r0 and r1 have just started."""
    made = LoadTable(n_experts=N_EXPERTS, window_s=WINDOW_S)
    for router in ("r0", "r1"):
        made.report(router, Load(expert_rows=IDLE), 0.0)
    return made


def test_the_window_is_shaped_by_layer_and_expert(table: LoadTable) -> None:
    assert table.window_expert_rows() is None
    table.report("r0", Load(expert_rows=tuple(range(8))), 1.0)
    table.report("r1", Load(expert_rows=(10,) * 8), 1.0)
    assert table.window_expert_rows() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert table.window_rows == 46


def test_rows_leave_the_window_with_time(table: LoadTable) -> None:
    for second in range(1, 101):
        table.report("r0", Load(expert_rows=rows(3 * second, second)), float(second))
    window = of_expert_0(table)
    assert window is not None
    # To within a snapshot and the second between two reports.
    assert 3 * (WINDOW_S * (1 - 1 / N_SNAPSHOTS) - 1) <= window[0] <= 3 * (WINDOW_S + 1)
    assert window[0] == 3 * window[1]


def test_a_deployment_at_rest_keeps_its_last_window_and_drops_it_when_work_comes(table: LoadTable) -> None:
    table.report("r0", Load(expert_rows=rows(7, 7)), 1.0)
    table.report("r0", Load(tokens=1, expert_rows=rows(7, 7)), 1000.0)
    assert of_expert_0(table) == [7, 7]
    table.report("r1", Load(expert_rows=rows(2, 2)), 1001.0)
    assert of_expert_0(table) == [2, 2]


def test_what_was_counted_before_the_first_report_is_not_in_the_window(table: LoadTable) -> None:
    table.report("r2", Load(expert_rows=rows(1000, 1000)), 1.0)
    assert of_expert_0(table) is None
    table.report("r2", Load(expert_rows=rows(1001, 1002)), 2.0)
    assert of_expert_0(table) == [1, 2]


def test_a_router_that_loads_first_counts_from_its_first_row(table: LoadTable) -> None:
    table.report("r2", Load(loaded_bytes=1), 1.0)
    table.report("r2", Load(expert_rows=rows(5, 5)), 2.0)
    assert of_expert_0(table) == [5, 5]


def test_the_window_can_begin_anew(table: LoadTable) -> None:
    table.report("r0", Load(expert_rows=rows(7, 7)), 1.0)
    table.reset_window()
    assert of_expert_0(table) is None
    table.report("r0", Load(expert_rows=rows(8, 8)), 2.0)
    assert of_expert_0(table) == [1, 1]


event = st.tuples(
    st.sampled_from(["r0", "r1", "r2"]),
    st.sampled_from(["report", "report", "report", "restart", "leave"]),
    st.integers(0, 50),
    st.floats(0, 30),
)


@settings(max_examples=100, deadline=None)
@given(events=st.lists(event, max_size=40))
def test_restarts_and_leaves_never_make_a_figure_negative(events: list[Any]) -> None:
    table = LoadTable(n_experts=N_EXPERTS, window_s=WINDOW_S)
    totals: dict[str, int] = {}
    now_s, routed = 0.0, 0
    for router, kind, n, passed_s in events:
        now_s += passed_s
        if kind == "leave":
            table.forget(router)
            totals.pop(router, None)
            continue
        if kind == "restart":
            totals.pop(router, None)
        totals[router] = totals.get(router, 0) + n
        routed += n
        table.report(router, Load(expert_rows=rows(totals[router], 0)), now_s)
        window = table.window_expert_rows() or [[0]]
        assert 0 <= window[0][0] <= routed
        assert not any(window[0][1:]), "rows stay with their expert"


def host_load(number: int, *by_layer_and_host: int) -> Load:
    return Load(expert_rows=IDLE, host_rows_generation=number, host_rows=by_layer_and_host)


def test_hosts_are_counted_by_generation(table: LoadTable) -> None:
    assert table.imbalance(generation()) == 0.0
    table.report("r0", host_load(3, 4, 2, 1, 1), 1.0)
    table.report("r1", host_load(3, 0, 0, 1, 3), 1.0)
    assert table.window_host_rows(generation()) == [4, 2, 2, 4]
    assert table.imbalance(generation()) == 1.0
    table.report("r0", host_load(3, 7, 2, 1, 1), 2.0)
    assert table.imbalance(generation()) == pytest.approx(9 / 7.5)

    table.report("r1", host_load(4, 6, 2, 0, 0), 3.0)
    assert table.window_host_rows(generation()) == []
    assert table.imbalance(generation()) == 0.0
    table.report("r0", host_load(3, 9, 9, 9, 9), 3.0)
    assert table.window_host_rows(generation(4)) == [6, 2, 0, 0], "the old generation's last rows are late"
    table.report("r0", host_load(4, 1, 1, 1, 1), 4.0)
    assert table.window_host_rows(generation(4)) == [7, 3, 1, 1]
    assert table.imbalance(generation(4)) == pytest.approx(8 / 6)


def test_gateways_hear_of_the_window(table: LoadTable) -> None:
    view = View(State.RUNNING, "", generation(), epoch=1)
    told = topology_update(view, table, draining=False, targets=None, now_s=5.0)
    assert (list(told.window_expert_rows), list(told.window_host_rows), told.imbalance) == ([], [], 0.0)
    table.report(
        "r0",
        Load(expert_rows=rows(4, 4), host_rows_generation=3, host_rows=(3, 1, 3, 1)),
        1.0,
    )
    told = topology_update(view, table, draining=False, targets=None, now_s=5.0)
    assert tuple(told.window_expert_rows) == rows(4, 4)
    assert list(told.window_host_rows) == [3, 1, 3, 1]
    assert told.imbalance == 1.5
