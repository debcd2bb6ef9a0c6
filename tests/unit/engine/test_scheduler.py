"""What the scheduler puts into a step, and what it makes of the outcome."""

from __future__ import annotations

from typing import Any

import pytest
from history_model import HistoryModel, expected_output, next_token, prompt_mark

from expertmesh.engine.batch import SequenceResult, StepBatch, StepResult, logit_rows
from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.outcome import StepOrderError
from expertmesh.engine.request import Request, RequestKey, RouterLoad, SamplingParams, SequenceNews
from expertmesh.engine.scheduler import DuplicateRequestError, Scheduler

CONTEXT = 100


class Router:
    """A scheduler with a model behind it."""

    def __init__(
        self,
        n_blocks: int = 64,
        block_tokens: int = 4,
        max_running: int = 8,
        max_step_tokens: int = 32,
        drafts: int = 0,
    ) -> None:
        self.drafts = drafts
        self.scheduler = Scheduler(
            BlockManager(n_blocks, block_tokens),
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            max_context_tokens=CONTEXT,
        )
        self.model = HistoryModel(n_blocks, block_tokens)

    def add(self, name: str, n_prompt: int = 5, output: tuple[int, ...] = (), **params: Any) -> Request:
        prompt = tuple((i * 7 + len(name)) % 11 for i in range(n_prompt))
        request = Request(
            RequestKey(name), prompt, SamplingParams(**{"max_tokens": 8, **params}), output_token_ids=output
        )
        self.scheduler.add(request)
        return request

    def step(self, max_prefill_tokens: int | None = None) -> tuple[StepBatch, list[SequenceNews]]:
        batch = self.scheduler.schedule(max_prefill_tokens, drafts=self.drafts)
        return batch, self.scheduler.commit(batch, self.model.run(batch))

    @property
    def n_running_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self.scheduler._running)

    def drain(self) -> dict[str, list[SequenceNews]]:
        news: dict[str, list[SequenceNews]] = {}
        for _ in range(1000):
            if not self.scheduler.has_work:
                return news
            for item in self.step()[1]:
                news.setdefault(item.key.request_id, []).append(item)
        raise AssertionError("the scheduler does not come to an end")


def chunks(batch: StepBatch) -> dict[str, tuple[int, int]]:
    """(context, tokens) of each request in a batch."""
    return {s.key.request_id: (s.n_context, s.n_tokens) for s in batch.sequences}


def tokens(news: list[SequenceNews]) -> list[int]:
    return [token_id for item in news for token_id in item.token_ids]


def test_decodes_come_first_and_prompts_share_what_is_left() -> None:
    router = Router(max_step_tokens=10)
    router.add("a", 6)
    assert chunks(router.step()[0]) == {"a": (0, 6)}
    router.add("b", 4)
    router.add("c", 8)
    router.add("d", 2)
    assert chunks(router.step()[0]) == {"a": (6, 1), "b": (0, 4), "c": (0, 5)}
    assert chunks(router.step()[0]) == {"a": (7, 1), "b": (4, 1), "c": (5, 3), "d": (0, 2)}


def test_the_step_budget_bounds_prompts_alone() -> None:
    router = Router()
    router.add("a", 3)
    router.step()
    router.add("b", 20)
    assert chunks(router.step(max_prefill_tokens=7)[0]) == {"a": (3, 1), "b": (0, 7)}
    assert chunks(router.step(max_prefill_tokens=0)[0]) == {"a": (4, 1)}
    batch = router.step()[0]
    assert chunks(batch) == {"a": (5, 1), "b": (7, 13)}
    assert (batch.n_tokens, batch.n_decode_tokens) == (14, 1)


def test_only_the_chunk_that_reaches_the_end_samples() -> None:
    router = Router(max_step_tokens=4)
    request = router.add("a", 10, max_tokens=1)
    assert [router.step()[1] for _ in range(2)] == [[], []]
    batch, (news,) = router.step()
    assert chunks(batch) == {"a": (8, 2)}
    assert news.token_ids == (next_token(list(request.prompt_token_ids)),)
    assert (news.index, news.finish_reason) == (0, "length")
    assert router.scheduler.n_used_blocks == 0


def test_max_running_holds_the_rest_in_the_queue() -> None:
    router = Router(max_running=2)
    for name in "abc":
        router.add(name, 3, max_tokens=2)
    assert set(chunks(router.step()[0])) == {"a", "b"}
    assert router.scheduler.load() == RouterLoad(1, 2, 3, router.n_running_tokens)
    assert set(chunks(router.step()[0])) == {"a", "b"}
    assert set(chunks(router.step()[0])) == {"c"}


def test_more_sequences_than_step_tokens_never_starve_one() -> None:
    router = Router(max_running=8, max_step_tokens=2)
    for name in "abcd":
        router.add(name, 3, max_tokens=3)
    news = router.drain()
    assert {name: len(tokens(items)) for name, items in news.items()} == dict.fromkeys("abcd", 3)


def test_max_tokens_end_a_request() -> None:
    router = Router()
    request = router.add("a", 5, max_tokens=6)
    news = router.drain()["a"]
    assert tokens(news) == expected_output(request, CONTEXT)[0]
    assert [n.finish_reason for n in news] == [None] * 5 + ["length"]
    assert news[-1].stop_token_id is None


def test_the_stop_token_is_told_and_named() -> None:
    router = Router()
    prompt = (1, 2, 3)
    first, second = next_token([1, 2, 3]), next_token([1, 2, 3, next_token([1, 2, 3])])
    assert first != second
    params = SamplingParams(max_tokens=9, stop_token_ids=frozenset({second}))
    router.scheduler.add(Request(RequestKey("a"), prompt, params))
    news = router.drain()["a"]
    assert [n.token_ids for n in news] == [(first,), (second,)]
    assert [n.index for n in news] == [0, 1]
    assert (news[-1].finish_reason, news[-1].stop_token_id) == ("stop", second)


def test_the_context_ends_a_request() -> None:
    router = Router(max_step_tokens=200)
    router.add("a", CONTEXT - 3, max_tokens=50)
    news = router.drain()["a"]
    assert len(tokens(news)) == 3
    assert news[-1].finish_reason == "length"


def test_a_resumed_request_goes_on_where_it_was() -> None:
    router = Router()
    whole = router.add("a", 5, max_tokens=6)
    output = tokens(router.drain()["a"])
    router.scheduler.add(
        Request(RequestKey("a", 1), whole.prompt_token_ids, whole.params, tuple(output[:4]))
    )
    news = router.drain()["a"]
    assert [n.index for n in news] == [4, 5]
    assert tokens(news) == output[4:]
    assert news[-1].finish_reason == "length"


def test_a_resumed_request_that_was_complete_ends_at_once() -> None:
    router = Router()
    router.add("a", 5, output=(1, 2), max_tokens=2)
    assert not router.scheduler.has_work
    (news,) = router.scheduler.take_news()
    assert (news.index, news.token_ids, news.finish_reason) == (2, (), "length")


def test_the_latest_arrival_gives_way_and_keeps_its_tokens() -> None:
    router = Router(n_blocks=6, block_tokens=2)
    requests = [router.add(name, 4, max_tokens=6) for name in ("a", "bb")]
    news: dict[str, list[SequenceNews]] = {}
    order = []
    while router.scheduler.has_work:
        batch, items = router.step()
        order.append(sorted(chunks(batch)))
        for item in items:
            news.setdefault(item.key.request_id, []).append(item)
    assert router.scheduler.n_preemptions == 1
    assert ["a"] in order
    assert order.index(["a"]) > order.index(["a", "bb"])
    for request in requests:
        items = news[request.key.request_id]
        assert tokens(items) == expected_output(request, CONTEXT)[0]
        assert [i.index for i in items] == list(range(6))
    assert router.scheduler.n_used_blocks == 0


def test_a_preempted_sequence_comes_before_those_that_waited() -> None:
    router = Router(n_blocks=6, block_tokens=2, max_running=2)
    for name in ("a", "bb"):
        router.add(name, 4, max_tokens=6)
    router.step()
    router.add("ccc", 1)
    while not router.scheduler.n_preemptions:
        router.step()
    came = []
    while router.scheduler.has_work:
        came.extend(name for name in chunks(router.step()[0]) if name not in came)
    assert came == ["a", "bb", "ccc"]


def test_a_preempted_sequence_is_cancelled_as_any_other() -> None:
    router = Router(n_blocks=6, block_tokens=2)
    for name in ("a", "bb"):
        router.add(name, 4, max_tokens=6)
    while not router.scheduler.n_preemptions:
        router.step()
    assert router.scheduler.load() == RouterLoad(1, 1, 7, router.n_running_tokens)
    router.scheduler.cancel(RequestKey("bb"))
    assert [n.finish_reason for n in router.drain()["bb"]] == ["cancelled"]
    assert router.scheduler.n_used_blocks == 0
    assert router.scheduler.load() == RouterLoad()


@pytest.mark.parametrize(
    ("n_prompt", "message"),
    [
        (0, "the prompt is empty"),
        (17, "17 tokens of prompt and answer exceed the cache of 16 tokens"),
        (CONTEXT + 1, "exceed the context of 100 tokens"),
    ],
)
def test_what_never_fits_is_refused(n_prompt: int, message: str) -> None:
    router = Router(n_blocks=4, block_tokens=4)
    router.add("a", n_prompt)
    assert not router.scheduler.has_work
    (news,) = router.scheduler.take_news()
    assert news.finish_reason == "error"
    assert message in news.error


def test_what_outgrows_the_whole_cache_ends_with_an_error() -> None:
    router = Router(n_blocks=2, block_tokens=4)
    request = router.add("a", 5, max_tokens=20)
    news = router.drain()["a"]
    assert tokens(news) == expected_output(request, CONTEXT)[0][:4]
    assert news[-1].finish_reason == "error"
    assert "9 tokens of prompt and answer exceed the cache of 8 tokens" in news[-1].error
    assert router.scheduler.n_used_blocks == 0


def test_a_cancellation_waits_for_the_commit() -> None:
    router = Router()
    router.add("a", 5)
    router.step()
    batch = router.scheduler.schedule()
    router.scheduler.cancel(RequestKey("a"))
    used = router.scheduler.n_used_blocks
    (news,) = router.scheduler.commit(batch, router.model.run(batch))
    assert (news.index, len(news.token_ids), news.finish_reason) == (1, 1, None)
    assert router.scheduler.n_used_blocks == used
    assert router.scheduler.schedule().sequences == ()
    (news,) = router.scheduler.take_news()
    assert (news.index, news.finish_reason) == (2, "cancelled")
    assert router.scheduler.n_used_blocks == 0
    assert not router.scheduler.has_work


def test_cancelling_what_waits_or_has_ended() -> None:
    router = Router(max_running=1)
    router.add("a", 5, max_tokens=1)
    router.add("b", 5)
    router.scheduler.cancel(RequestKey("b"))
    router.scheduler.cancel(RequestKey("nobody"))
    news = router.drain()
    assert [n.finish_reason for n in news["b"]] == ["cancelled"]
    assert [n.finish_reason for n in news["a"]] == ["length"]
    router.scheduler.cancel(RequestKey("a"))
    assert router.scheduler.load() == RouterLoad()
    assert router.step() == (StepBatch(), [])


def test_a_cancellation_does_not_reach_a_request_that_ends_in_the_same_step() -> None:
    router = Router()
    router.add("a", 5, max_tokens=1)
    batch = router.scheduler.schedule()
    router.scheduler.cancel(RequestKey("a"))
    (news,) = router.scheduler.commit(batch, router.model.run(batch))
    assert news.finish_reason == "length"
    router.scheduler.add(Request(RequestKey("a"), (1, 2), SamplingParams(max_tokens=1)))
    assert [n.finish_reason for n in router.drain()["a"]] == ["length"]


def test_failures_end_requests_with_their_reason() -> None:
    router = Router(max_running=1)
    for name in "abc":
        router.add(name, 5)
    router.step()
    router.scheduler.fail(RequestKey("a"), "the gateway is silent")
    router.step()
    router.scheduler.schedule()
    router.scheduler.fail_all("the router stops")
    ends = {n.key.request_id: (n.finish_reason, n.error) for n in router.scheduler.take_news()}
    assert ends == dict.fromkeys("bc", ("error", "the router stops"))
    assert (router.scheduler.n_used_blocks, router.scheduler.has_work) == (0, False)
    router.add("d", 5)
    assert set(router.drain()) == {"d"}


def test_prompt_scores_come_once_each_across_chunks() -> None:
    router = Router(max_step_tokens=4)
    request = router.add("a", 10, max_tokens=2, prompt_logprobs=0)
    batch, (first,) = router.step()
    assert batch.sequences[0].prompt_targets == request.prompt_token_ids[1:5]
    news = [first, *router.drain()["a"]]
    scored = {item.prompt_index + i: row for item in news for i, row in enumerate(item.prompt_logprobs)}
    assert sum(len(item.prompt_logprobs) for item in news) == 9
    assert [scored[p].token_ids[0] for p in range(1, 10)] == list(request.prompt_token_ids[1:])
    assert [scored[p].logprobs[0] for p in range(1, 10)] == [
        prompt_mark(request.prompt_token_ids, p) for p in range(1, 10)
    ]


def test_prompt_scores_come_once_after_a_preemption() -> None:
    router = Router(n_blocks=6, block_tokens=2)
    router.add("a", 4, max_tokens=6)
    router.add("bb", 4, max_tokens=6, prompt_logprobs=0)
    news = router.drain()
    assert router.scheduler.n_preemptions == 1
    assert [(n.prompt_index, len(n.prompt_logprobs)) for n in news["bb"] if n.prompt_logprobs] == [(1, 3)]


def test_prompt_scores_come_once_after_a_preemption_inside_the_prompt() -> None:
    router = Router(n_blocks=6, block_tokens=2, max_step_tokens=3)
    router.add("a", 3, max_tokens=8)
    request = router.add("bb", 8, max_tokens=2, prompt_logprobs=0)
    news = router.drain()["bb"]
    assert router.scheduler.n_preemptions == 1
    marks = {n.prompt_index + i: row.logprobs[0] for n in news for i, row in enumerate(n.prompt_logprobs)}
    assert sum(len(n.prompt_logprobs) for n in news) == 7
    assert marks == {p: prompt_mark(request.prompt_token_ids, p) for p in range(1, 8)}
    assert next(n.prompt_index for n in news if n.prompt_logprobs) == 1
    assert tokens(news) == expected_output(request, CONTEXT)[0]


def test_a_resumed_request_has_had_its_prompt_scores() -> None:
    router = Router()
    router.add("a", 5, output=(1,), max_tokens=3, prompt_logprobs=2)
    batch, _ = router.step()
    assert batch.sequences[0].prompt_targets == ()


def test_a_prompt_is_scored_without_generating() -> None:
    router = Router(max_step_tokens=4)
    router.add("a", 6, max_tokens=0, prompt_logprobs=0)
    news = router.drain()["a"]
    assert sum(len(n.prompt_logprobs) for n in news) == 5
    assert tokens(news) == []
    assert news[-1].finish_reason == "length"


def test_penalties_get_the_whole_sequence() -> None:
    router = Router(max_step_tokens=4)
    request = router.add("a", 6, max_tokens=3, repetition_penalty=1.5)
    assert router.step()[0].sequences[0].penalty_token_ids == ()
    batch, (news,) = router.step()
    assert batch.sequences[0].penalty_token_ids == request.prompt_token_ids
    batch, _ = router.step()
    assert batch.sequences[0].penalty_token_ids == request.prompt_token_ids + news.token_ids


def test_logit_rows_are_those_that_score_and_those_that_sample() -> None:
    router = Router(max_step_tokens=12)
    router.add("a", 3)
    router.step()
    router.add("b", 4, prompt_logprobs=0)
    router.add("c", 9, prompt_logprobs=0)
    batch, _ = router.step()
    assert chunks(batch) == {"a": (3, 1), "b": (0, 4), "c": (0, 7)}
    assert logit_rows(batch) == [0, 1, 2, 3, 4, *range(5, 12)]
    batch, _ = router.step()
    assert chunks(batch) == {"a": (4, 1), "b": (4, 1), "c": (7, 2)}
    assert logit_rows(batch) == [0, 1, 2, 3]


def test_steps_are_scheduled_and_committed_in_turn() -> None:
    router = Router()
    router.add("a", 5)
    batch = router.scheduler.schedule()
    with pytest.raises(StepOrderError, match="must be committed"):
        router.scheduler.schedule()
    other = StepBatch(batch.sequences)
    with pytest.raises(StepOrderError, match="once"):
        router.scheduler.commit(other, router.model.run(other))
    with pytest.raises(StepOrderError, match="does not hold"):
        router.scheduler.commit(batch, StepResult((SequenceResult(),)))
    with pytest.raises(StepOrderError, match="1 sequences and its result 0"):
        router.scheduler.commit(batch, StepResult(()))
    result = router.model.run(batch)
    assert router.model.run(batch) == result
    assert len(router.scheduler.commit(batch, result)) == 1
    with pytest.raises(StepOrderError, match="once"):
        router.scheduler.commit(batch, result)


def test_a_request_is_queued_once() -> None:
    router = Router()
    router.add("a", 5)
    with pytest.raises(DuplicateRequestError, match="'a', attempt 0"):
        router.add("a", 5)


def test_drafts_bring_several_tokens_a_step_and_change_none() -> None:
    plain, drafting = Router(), Router(drafts=3)
    for router in (plain, drafting):
        for i, name in enumerate(("a", "bb", "ccc")):
            router.add(name, 5 + i, max_tokens=30, stop_token_ids=frozenset({i}), logprobs=i or None)
    expected, got = plain.drain(), drafting.drain()
    n_accepted = 0
    for name, news in got.items():
        assert tokens(news) == tokens(expected[name])
        assert news[-1].finish_reason == expected[name][-1].finish_reason
        assert news[-1].stop_token_id == expected[name][-1].stop_token_id
        assert [n.index for n in news] == [len(tokens(news[:i])) for i in range(len(news))]
        for item in news:
            assert item.accepted_tokens <= item.draft_tokens
            assert len(item.logprobs) in (0, len(item.token_ids))
        n_accepted += sum(n.accepted_tokens for n in news)
        n_steps = sum(bool(n.token_ids) for n in news)
        assert n_steps + sum(n.accepted_tokens for n in news) >= len(tokens(news))
    assert n_accepted > 5
    assert drafting.scheduler.n_used_blocks == 0


def test_an_answer_ends_in_the_middle_of_accepted_drafts() -> None:
    """At its longest, and at a stop token; what was drawn behind is dropped."""
    router = Router(drafts=3)
    output, reason = expected_output(router.add("a", 5, max_tokens=9), CONTEXT)
    assert reason == "length"
    news = router.drain()["a"]
    assert tokens(news) == output
    assert max(len(n.token_ids) for n in news) > 1
    for stop in output[1:]:
        router = Router(drafts=3)
        router.add("a", 5, max_tokens=9, stop_token_ids=frozenset({stop}))
        news = router.drain()["a"]
        assert tokens(news) == output[: output.index(stop) + 1]
        assert (news[-1].finish_reason, news[-1].stop_token_id) == ("stop", stop)


def test_drafts_take_no_block_and_no_row_from_anyone() -> None:
    router = Router(n_blocks=7, block_tokens=2, max_step_tokens=3, drafts=3)
    for name in ("a", "b"):
        router.add(name, 2, max_tokens=5)
    preempted = router.scheduler.n_preemptions
    while router.scheduler.has_work:
        batch, _ = router.step()
        assert batch.n_tokens <= 3
        for s in batch.sequences:
            # The second draft of the next step, and the third, are written behind the step's tokens.
            last = s.n_context + s.n_tokens + max(s.drafts_wanted - 1, 0)
            assert len(s.block_table) * 2 >= last
            assert s.drafts_wanted in (0, 1, 3)
    assert router.scheduler.n_preemptions == preempted == 0
