"""Parsing of completion streams, cut anywhere."""

from __future__ import annotations

import json

import pytest
from serving_bench.clients import checked_timing
from serving_bench.engine import EngineError, StepTotals, mean_step_ms
from serving_bench.expertmesh_engine import ExpertmeshEngine, parse_step_totals
from serving_bench.sse import llama_tokens, split_events, token_arrivals


def event(*token_ids: int) -> bytes:
    body = {"choices": [{"index": 0, "text": "", "token_ids": list(token_ids)}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_tokens_get_the_time_at_which_their_event_was_whole() -> None:
    stream = event(1) + event(2, 3)
    chunks = [(1.0, stream[:5]), (2.0, stream[5:-1]), (3.0, stream[-1:] + DONE)]
    assert token_arrivals(chunks) == ([2.0, 3.0, 3.0], [1, 2, 3])


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_cuts_do_not_matter(cut: int) -> None:
    stream = (event(5) + event(6) + DONE).replace(b"\n\n", b"\r\n\r\n")
    chunks = [(float(i), stream[i : i + cut]) for i in range(0, len(stream), cut)]
    times_s, token_ids = token_arrivals(chunks)
    assert token_ids == [5, 6]
    assert times_s == sorted(times_s)


def test_usage_and_role_chunks_carry_no_tokens() -> None:
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\n'
    final = b'data: {"choices": [{"index": 0, "finish_reason": "length", "token_ids": null}]}\n\n'
    assert token_arrivals([(1.0, event(9) + final + usage + DONE)]) == ([1.0], [9])


def test_llama_cpp_repeats_its_tokens_in_the_last_event() -> None:
    stream = b'data: {"tokens":[7],"stop":false}\n\ndata: {"tokens":[7],"stop":true,"content":""}\n\n'
    assert token_arrivals([(1.0, stream)], llama_tokens) == ([1.0], [7])


def test_errors_and_cut_streams_are_not_taken_for_answers() -> None:
    with pytest.raises(EngineError, match="queue"):
        token_arrivals([(1.0, b'data: {"error": {"message": "the queue is full"}}\n\n')])
    with pytest.raises(EngineError, match="within an event"):
        split_events([(1.0, b"data: {")])
    with pytest.raises(EngineError, match="2 tokens instead of 3"):
        checked_timing(0.0, [1.0, 2.0], [1, 2], 3)


def test_step_parts_are_means_of_the_steps_in_between() -> None:
    before = StepTotals(10, {"attention": 100.0})
    after = StepTotals(14, {"attention": 120.0, "wait": 8.0})
    assert mean_step_ms(before, after) == {"attention": 5.0, "wait": 2.0}
    assert mean_step_ms(after, after) is None
    assert mean_step_ms(None, after) is None


def test_profile_answers_of_another_form_count_as_absent() -> None:
    router = {"decode_profile": {"steps": 2, "part_ms": {"gate": 1}}}
    host = {"decode_profile": {"steps": 4, "part_ms": {"experts": 6, "wait": 1}}}
    assert parse_step_totals({"routers": [router, router], "experts": [host]}) == StepTotals(
        4, {"gate": 2.0, "experts on hosts": 6.0}
    )
    assert parse_step_totals({"routers": [], "experts": []}) is None
    assert parse_step_totals({"detail": "Not Found"}) is None
    assert parse_step_totals([1]) is None


@pytest.mark.parametrize(("given", "name"), [("fused", "fused"), ("1x0", "fused"), ("2x3", "2x3")])
def test_engines_are_named_by_their_counts(given: str, name: str) -> None:
    engine = ExpertmeshEngine.from_name(given)
    assert engine is not None
    assert engine.name == name


@pytest.mark.parametrize("name", ["0x2", "vllm", "1x", ""])
def test_other_names_are_no_engine(name: str) -> None:
    assert ExpertmeshEngine.from_name(name) is None
