"""How many drafts a router makes: as many as pay, by what it measured."""

from __future__ import annotations

from collections.abc import Callable

from expertmesh.engine.batch import (
    SampledToken,
    ScheduledSequence,
    SequenceResult,
    StepBatch,
    StepResult,
)
from expertmesh.engine.draft_control import DraftControl
from expertmesh.engine.request import RequestKey, SamplingParams


def step(n_sequences: int, n_drafts: int, n_accepted: int) -> tuple[StepBatch, StepResult]:
    """A step that verifies so many drafts of each sequence."""
    sequence = ScheduledSequence(
        key=RequestKey("a"),
        params=SamplingParams(max_tokens=9),
        token_ids=(1,) * (1 + n_drafts),
        n_context=5,
        block_table=(0,),
        samples=True,
        n_prompt=2,
        n_drafts=n_drafts,
    )
    outcome = SequenceResult((SampledToken(1),) * (1 + n_accepted))
    return StepBatch((sequence,) * n_sequences), StepResult((outcome,) * n_sequences)


def run(
    control: DraftControl,
    n_sequences: int,
    n_steps: int,
    ms: Callable[[int], float],
    accepted: Callable[[int], int],
) -> list[int]:
    """The drafts of each step, where a step with so many takes `ms` and brings `accepted` of them."""
    chosen = []
    for _ in range(n_steps):
        n_drafts = control.drafts(n_sequences)
        chosen.append(n_drafts)
        control.observe(*step(n_sequences, n_drafts, accepted(n_drafts)), n_drafts, ms(n_drafts))
    return chosen


def share(chosen: list[int], n_drafts: int) -> float:
    return chosen.count(n_drafts) / len(chosen)


def test_drafts_stay_on_where_they_pay_and_go_off_where_they_do_not() -> None:
    control = DraftControl(2)
    alone = run(control, 1, 2000, ms=lambda n: 10 + n, accepted=lambda n: n)
    assert share(alone[100:], 2) > 0.95
    many = run(control, 40, 2000, ms=lambda n: 10 + 20 * n, accepted=lambda n: n)
    assert share(many[100:], 0) > 0.95
    assert share(run(control, 1, 200, ms=lambda n: 10 + n, accepted=lambda n: n), 2) > 0.9


def test_the_best_number_may_lie_between() -> None:
    chosen = run(DraftControl(3), 1, 2000, ms=lambda n: 10 + 2 * n, accepted=lambda n: min(n, 1))
    assert share(chosen[100:], 1) > 0.95


def test_a_change_of_the_text_is_noticed() -> None:
    control = DraftControl(1)
    run(control, 1, 500, ms=lambda n: 10 + 3 * n, accepted=lambda n: 0)
    assert control.drafts(1) == 0
    later = run(control, 1, 4000, ms=lambda n: 10 + 3 * n, accepted=lambda n: n)
    assert share(later[-500:], 1) > 0.9


def test_a_hiccup_decides_nothing() -> None:
    control = DraftControl(1)
    run(control, 1, 200, ms=lambda n: 10 + n, accepted=lambda n: n)
    run(control, 1, 1, ms=lambda n: 10_000, accepted=lambda n: n)
    assert share(run(control, 1, 200, ms=lambda n: 10 + n, accepted=lambda n: n), 1) > 0.9


def test_the_number_is_fixed_unless_it_adapts_and_nothing_is_drafted_without() -> None:
    fixed = DraftControl(2, adaptive=False)
    assert set(run(fixed, 64, 100, ms=lambda n: 10 + 50 * n, accepted=lambda n: 0)) == {2}
    assert DraftControl(0).drafts(1) == 0
