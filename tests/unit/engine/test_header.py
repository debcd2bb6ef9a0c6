"""Headers and what follows from them."""

from __future__ import annotations

from dataclasses import replace

from expertmesh.engine.exchange.header import StepAgreement, StepHeader


def test_a_header_survives_its_journey() -> None:
    header = StepHeader(3, 17, tokens=5, decode_tokens=4, draft_passes=1, draft_tokens=4, successor=4)
    assert StepHeader.decode(header.encode()) == header
    assert len(header.encode()) == StepHeader.n_fields()


def test_what_a_step_exchanges_follows_from_the_headers() -> None:
    """Three layers, the last the drafter's; two routers that want other numbers of drafts, and a host."""
    a = StepHeader(1, 0, tokens=7, draft_passes=2, draft_tokens=3)
    b = StepHeader(1, 0, tokens=5, draft_passes=1, draft_tokens=4)
    host = StepHeader(1, 0)

    def exchanges(*headers: StepHeader) -> list[tuple[int, tuple[int, ...]]]:
        return [(due.moe_layer, due.tokens) for due in StepAgreement(headers).exchanges(3, 1)]

    whole = [(0, (7, 5, 0)), (1, (7, 5, 0)), (2, (7, 5, 0))]
    assert exchanges(a, b, host) == [*whole, (2, (3, 4, 0)), (2, (3, 0, 0))]
    idle = StepHeader(1, 0)
    assert exchanges(a, idle, host)[3:] == [(2, (3, 0, 0)), (2, (3, 0, 0))]
    assert len(exchanges(replace(a, draft_passes=0), idle, host)) == 3
    assert exchanges(idle, idle, host) == []


def test_ranks_park_when_nobody_has_work() -> None:
    idle, busy = StepHeader(1, 0), StepHeader(1, 0, tokens=1)
    assert StepAgreement((idle, idle)).parks
    assert not StepAgreement((idle, busy)).parks


def test_ranks_switch_when_all_are_ready_for_it() -> None:
    ready, not_ready = StepHeader(1, 0, successor=2), StepHeader(1, 0)
    assert StepAgreement((ready, ready)).successor == 2
    assert StepAgreement((ready, not_ready)).successor == 0


def test_a_rank_at_another_step_is_named() -> None:
    own = StepHeader(2, 7)
    assert StepAgreement((own, StepHeader(2, 7, tokens=3))).mismatch(own) is None
    mismatch = StepAgreement((own, StepHeader(2, 6))).mismatch(own)
    assert mismatch is not None
    assert "rank 1 is at generation 2 step 6" in mismatch


def test_versions_of_the_weights_take_turns_while_they_are_wanted() -> None:
    def turns(first: int, *wanted: tuple[int, int]) -> list[int]:
        """The versions of the steps that follow, with what two ranks want in each."""
        got = [first]
        for a, b in wanted:
            agreement = StepAgreement((StepHeader(1, 0, wanted=a), StepHeader(1, 0, wanted=b)))
            assert agreement.parks == (a == b == 0)
            got.append(agreement.next_turn(got[-1], 2))
        return got

    assert turns(1, (0b10, 0b01), (0b10, 0b01), (0b10, 0b10), (0, 0b10), (0, 0)) == [1, 0, 1, 1, 1, 1]
    assert turns(1, (0b01, 0), (0b01, 0), (0, 0), (0b10, 0)) == [1, 0, 0, 0, 1]
    assert StepAgreement((StepHeader(1, 0, wanted=1),)).next_turn(0, 1) == 0
