"""Single steps of a layer from one placement to another."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from expertmesh.cluster.placement.advance import UNLIMITED, advance


def test_an_expert_stays_until_it_stands_where_it_is_to_be() -> None:
    held, target = [[0, 1], [2, 3]], [[0, 1, 2, 3], []]
    assert advance(held, target, [1, 1]) == [[0, 1, 2], [3]]
    assert advance([[0, 1, 2], [3]], target, [1, 1]) == target


def test_full_hosts_pass_experts_round() -> None:
    held, target = [[0, 1], [2, 3], [4, 5]], [[4, 1], [0, 3], [2, 5]]
    assert advance(held, target, [1, 1, 1]) == [[1, 4], [0, 3], [2, 5]]


def test_a_ring_without_who_has_nothing_to_give_is_closed() -> None:
    # Host 0 gains from host 1, which is full and exchanges with host 2.
    held, target = [[0], [1, 2], [3, 4]], [[0, 1], [3], [2, 4]]
    step = advance(held, target, [1, 1, 1])
    assert step == [[0, 1], [3], [2, 4]]


@st.composite
def _two_placements(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    n_experts, n_hosts = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    expert = st.integers(0, n_experts - 1)

    def placement() -> list[list[int]]:
        hosts = [draw(st.sets(expert)) for _ in range(n_hosts)]
        for lacking in set(range(n_experts)).difference(*hosts):
            hosts[draw(st.integers(0, n_hosts - 1))].add(lacking)
        return [sorted(experts) for experts in hosts]

    return placement(), placement()


@given(_two_placements(), st.integers(1, 3))
def test_steps_lead_to_the_target_within_the_budget(
    placements: tuple[list[list[int]], list[list[int]]], budget: int
) -> None:
    now, target = placements
    everything = {expert for experts in target for expert in experts}
    assert advance(now, target, [UNLIMITED] * len(now)) == target
    rooms = [max(len(a), len(b)) for a, b in zip(now, target, strict=True)]
    while now != target:
        step = advance(now, target, [budget] * len(now))
        loads = [set(after) - set(before) for before, after in zip(now, step, strict=True)]
        assert any(loads) or step == target
        assert all(len(new) <= budget for new in loads)
        assert all(new <= set(wanted) for new, wanted in zip(loads, target, strict=True))
        assert {expert for experts in step for expert in experts} == everything
        assert all(len(experts) <= room for experts, room in zip(step, rooms, strict=True))
        now = step


@given(_two_placements(), st.randoms(use_true_random=False))
def test_between_equal_counts_every_step_keeps_them(
    placements: tuple[list[list[int]], list[list[int]]], random: Random
) -> None:
    now, _ = placements
    renamed = list(range(6))
    n_experts = len({expert for experts in now for expert in experts})
    renamed[:n_experts] = random.sample(range(n_experts), n_experts)
    target = [sorted(renamed[expert] for expert in experts) for experts in now]
    while now != target:
        step = advance(now, target, [1] * len(now))
        assert step != now
        assert list(map(len, step)) == list(map(len, target))
        now = step
