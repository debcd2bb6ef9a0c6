"""What is counted of a router's steps."""

from __future__ import annotations

import pytest

from expertmesh.engine.batch import ScheduledSequence, StepBatch
from expertmesh.engine.meter import StepMeter
from expertmesh.engine.request import RequestKey, SamplingParams, SequenceNews

A, B = RequestKey("a"), RequestKey("b")


@pytest.fixture
def meter() -> StepMeter:
    return StepMeter((0.01, 0.1), (60.0,), (1, 2, 4))


def batch(*keys: RequestKey, n_tokens: int = 1, n_context: int = 3) -> StepBatch:
    params = SamplingParams(max_tokens=5)
    return StepBatch(
        tuple(
            ScheduledSequence(key, params, (7,) * n_tokens, n_context, (0,), samples=True, n_prompt=3)
            for key in keys
        )
    )


def test_a_request_waits_until_its_first_step_and_no_longer(meter):
    meter.arrived(A)
    meter.arrived(B)
    meter.scheduled(batch(A))
    meter.scheduled(batch(A))
    assert meter.wait_s.take() == [1, 0]
    meter.scheduled(batch(A, B))
    assert meter.wait_s.take() == [1, 0]


@pytest.mark.parametrize("how", ["cancelled", "refused"])
def test_who_goes_before_the_first_step_leaves_nothing_behind(meter, how):
    meter.arrived(A)
    if how == "cancelled":
        meter.gone(A)
    else:
        meter.told([SequenceNews(B, 0, (1,)), SequenceNews(A, 0, finish_reason="error")])
    meter.scheduled(batch(A))
    assert meter.wait_s.take() == [0, 0]


def test_steps_count_tokens_by_phase_and_their_time_by_bucket(meter):
    meter.committed(n_sequences=2, n_tokens=12, n_decode_tokens=1, step_ms=50.0)
    meter.committed(n_sequences=4, n_tokens=4, n_decode_tokens=4, step_ms=5.0)
    assert (meter.prefill_tokens, meter.decode_tokens) == (11, 5)
    assert meter.step_s.take() == [1, 1, 0]
    assert meter.sequences.take() == [0, 1, 1, 0]
