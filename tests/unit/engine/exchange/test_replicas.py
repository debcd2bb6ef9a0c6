"""Which copy of an expert gets which rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.replicas import ReplicaChoice

CPU = torch.device("cpu")
N_EXPERTS = 6
ONE_COPY = ((0, 1, 2), (3, 4), (5,))
COPIES = ((0, 1, 2, 3), (0, 4, 3), (5, 0))
"""Expert 0 has three copies, expert 3 has two; host 0 has the most slots."""


def choice(*layers: tuple[tuple[int, ...], ...]) -> ReplicaChoice:
    members = ("R0", "E0", "E1", "E2")
    return ReplicaChoice(RankLayout(1, 1, layers, members), N_EXPERTS, len(layers), CPU)


def holder(slots: tuple[tuple[int, ...], ...], physical: int) -> int:
    """The logical expert in a physical slot."""
    host, slot = divmod(physical, max(len(s) for s in slots))
    return slots[host][slot]


routings = st.lists(
    st.lists(st.integers(0, N_EXPERTS - 1), min_size=3, max_size=3, unique=True), max_size=40
).map(lambda ids: torch.tensor(ids, dtype=torch.int64).view(-1, 3))


@settings(max_examples=60, deadline=None)
@given(ids_TK=routings, first=st.integers(0, 1 << 40))
def test_rows_reach_their_expert_and_copies_take_turns(ids_TK: Tensor, first: int) -> None:
    physical_TK = choice(COPIES).physical(0, ids_TK, first)
    assert physical_TK.shape == ids_TK.shape
    assert [holder(COPIES, p) for p in physical_TK.flatten().tolist()] == ids_TK.flatten().tolist()
    for expert, n_copies in ((0, 3), (3, 2), (4, 1)):
        rows = torch.unique(physical_TK[ids_TK == expert], return_counts=True)[1].tolist()
        rows += [0] * (n_copies - len(rows))
        assert max(rows) - min(rows) <= 1, "no copy gets two rows more than another"


def test_layers_without_copies_have_one_answer() -> None:
    table = choice(ONE_COPY, COPIES)
    ids_TK = torch.arange(N_EXPERTS).view(-1, 2)
    assert table.physical(0, ids_TK, 0).tolist() == [[0, 1], [2, 4], [5, 8]]
    assert torch.equal(table.physical(0, ids_TK, 0), table.physical(0, ids_TK, 5))
    assert not torch.equal(table.physical(1, ids_TK, 0), table.physical(1, ids_TK, 1))


def test_a_single_row_goes_round_the_copies() -> None:
    table = choice(COPIES, COPIES)
    row = torch.tensor([[0]])
    seen = [table.physical(0, row, first).item() for first in range(6)]
    assert sorted(seen[:3]) == [0, 4, 9]
    assert seen[3:] == seen[:3]
    assert table.physical(1, row, 0).item() == seen[1], "the layers begin with different copies"


def test_an_expert_without_a_slot_is_named() -> None:
    with pytest.raises(ValueError, match=r"MoE layer 1: experts \[4\] have no slot"):
        choice(ONE_COPY, ((0, 1), (2, 3), (5,)))
