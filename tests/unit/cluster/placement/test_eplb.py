"""DeepSeek's balancer: its published example, and what its parts promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmesh.cluster.placement.eplb import pack_balanced, rebalance_experts, rebalance_global, replicate

# The example in the README of github.com/deepseek-ai/EPLB: 2 layers of 12 experts in 4 groups, 16 replicas,
# 8 GPUs on 2 nodes.
README_LOAD = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_PLACEMENT = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_the_published_example_gives_its_printed_placement() -> None:
    expert_LS, copies_LE = rebalance_experts(np.array(README_LOAD, float), 16, 4, 2, 8)
    assert expert_LS.tolist() == README_PLACEMENT
    for experts, copies in zip(README_PLACEMENT, copies_LE.tolist(), strict=True):
        assert [experts.count(e) for e in range(12)] == copies


def test_groups_stay_on_one_node_if_nodes_divide_them() -> None:
    expert_LS, _ = rebalance_experts(np.array(README_LOAD, float), 16, 4, 2, 8)
    for experts in expert_LS.reshape(2, 2, 8).tolist():
        groups_of_node = [{expert // 3 for expert in of_node} for of_node in experts]
        assert groups_of_node[0].isdisjoint(groups_of_node[1])


def test_the_global_policy_is_taken_if_nodes_do_not_divide_the_groups() -> None:
    load = np.array(README_LOAD, float)
    taken = rebalance_experts(load, 16, 3, 2, 8)[0]
    assert taken.tolist() == rebalance_global(load, 16, 8)[0].tolist()
    assert taken.tolist() != README_PLACEMENT


def test_copies_go_to_who_has_the_most_load_a_copy() -> None:
    expert_XS, copies_XE = replicate(np.array([[10.0, 3.0, 6.0]]), 6)
    assert expert_XS.tolist() == [[0, 1, 2, 0, 2, 0]]  # 10 > 6 and 5; 6 > 5; 5 > 3 and 3
    assert copies_XE.tolist() == [[3, 1, 2]]
    _, bounded_XE = replicate(np.array([[10.0, 3.0, 6.0]]), 6, max_copies=2)
    assert bounded_XE.tolist() == [[2, 2, 2]]


def test_counts_that_do_not_fit_are_refused() -> None:
    load = np.ones((1, 4))
    with pytest.raises(ValueError, match="3 slots for 4 experts"):
        replicate(load, 3)
    with pytest.raises(ValueError, match="9 slots for 4 experts with at most 2 copies each"):
        replicate(load, 9, max_copies=2)
    with pytest.raises(ValueError, match="4 items do not divide evenly among 3 packs"):
        pack_balanced(load, 3)
    with pytest.raises(ValueError, match="6 slots do not divide evenly among 4 hosts"):
        rebalance_global(load, 6, 4)


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_packs_have_equal_counts_and_differ_by_one_item_at_most(
    n_packs: int, size: int, data: st.DataObject
) -> None:
    n = n_packs * size
    weight = data.draw(
        st.lists(st.lists(st.integers(0, 50), min_size=n, max_size=n), min_size=1, max_size=3)
    )
    pack_XN, place_XN = pack_balanced(np.array(weight, float), n_packs)
    for row, packs, places in zip(weight, pack_XN.tolist(), place_XN.tolist(), strict=True):
        assert sorted(zip(packs, places, strict=True)) == [
            (p, i) for p in range(n_packs) for i in range(size)
        ]
        loads = [sum(w for w, p in zip(row, packs, strict=True) if p == pack) for pack in range(n_packs)]
        assert max(loads) - min(loads) <= max(row)
