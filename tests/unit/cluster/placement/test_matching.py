"""The two matchings, against trying everything."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from expertmesh.cluster.placement.matching import best_assignment, keepers


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.integers(0, 6), min_size=n * n, max_size=n * n)))
def test_no_order_of_hosts_has_more_in_common(gains: list[int]) -> None:
    n = round(len(gains) ** 0.5)
    gain_NN = np.array(gains, np.int64).reshape(n, n)
    columns = best_assignment(gain_NN)
    assert sorted(columns) == list(range(n))
    best = max(
        sum(gain_NN[row, column] for row, column in enumerate(order)) for order in permutations(range(n))
    )
    assert sum(gain_NN[row, column] for row, column in enumerate(columns)) == best


@given(
    st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_as_many_experts_as_possible_have_a_keeper(held: list[set[int]], shares: list[int]) -> None:
    kept = keepers([sorted(experts) for experts in held], shares)
    for of_host, holds, share in zip(kept, held, shares, strict=False):
        assert of_host <= holds
        assert len(of_host) <= share
    n_kept = sum(map(len, kept))
    assert n_kept == len(set().union(*kept))

    experts = sorted(set().union(*held))
    options = [[h for h, holds in enumerate(held) if expert in holds] + [None] for expert in experts]
    best = max(
        sum(host is not None for host in choice)
        for choice in product(*options)
        if all(choice.count(host) <= shares[host] for host in range(len(held)))
    )
    assert n_kept == best
