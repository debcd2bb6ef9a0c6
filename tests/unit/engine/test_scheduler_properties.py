"""Whatever comes in whichever order: every request ends once, its tokens come once, no block is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from history_model import VOCAB_SIZE, HistoryModel, expected_output, prompt_mark
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.request import Request, RequestKey, RouterLoad, SamplingParams, SequenceNews
from expertmesh.engine.scheduler import Scheduler


@dataclass
class Seen:
    """What a client has received of one request."""

    output: list[int]
    prompt_marks: dict[int, float] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    error: str = ""

    def take(self, news: SequenceNews) -> None:
        assert not self.ends, "news after the end"
        assert news.index == len(self.output), "a token was repeated or left out"
        self.output.extend(news.token_ids)
        for i, row in enumerate(news.prompt_logprobs):
            assert news.prompt_index + i not in self.prompt_marks, "a prompt score came twice"
            self.prompt_marks[news.prompt_index + i] = row.logprobs[0]
        if news.finish_reason is not None:
            self.ends.append(news.finish_reason)
            self.error = news.error


token_lists = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)
requests = st.builds(
    lambda prompt, output, extra, stop, scored, penalty: (
        prompt,
        output,
        len(output) + extra,
        stop,
        scored,
        penalty,
    ),
    token_lists,
    token_lists.map(lambda ids: ids[:3]),
    st.integers(0, 12),
    st.frozensets(st.integers(0, VOCAB_SIZE - 1), max_size=2),
    st.booleans(),
    st.sampled_from([1.0, 1.2]),
)
actions = st.one_of(
    st.tuples(st.just("add"), requests),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(
        st.just("step"), st.one_of(st.none(), st.integers(0, 9)), st.integers(1, 3), st.integers(-20, 30)
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    n_blocks=st.integers(3, 12),
    block_tokens=st.integers(1, 3),
    max_running=st.integers(1, 5),
    max_step_tokens=st.integers(1, 16),
    max_context_tokens=st.integers(4, 30),
    drafts=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    first=st.lists(requests, min_size=2, max_size=6),
    plan=st.lists(actions, max_size=40),
)
def test_every_request_ends_once_with_its_own_tokens(
    n_blocks: int,
    block_tokens: int,
    max_running: int,
    max_step_tokens: int,
    max_context_tokens: int,
    drafts: list[int],
    first: list[tuple[Any, ...]],
    plan: list[tuple[Any, ...]],
) -> None:
    blocks = BlockManager(n_blocks, block_tokens)
    scheduler = Scheduler(
        blocks,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_context_tokens=max_context_tokens,
    )
    model = HistoryModel(n_blocks, block_tokens)
    added: list[Request] = []
    cancelled: set[RequestKey] = set()
    seen: dict[RequestKey, Seen] = {}

    def deliver(news: list[SequenceNews]) -> None:
        for item in news:
            seen[item.key].take(item)

    def cancel(index: int) -> None:
        if 0 <= index < len(added):
            cancelled.add(added[index].key)
            scheduler.cancel(added[index].key)

    def step(max_prefill_tokens: int | None, n_runs: int, cancel_in_flight: int) -> int:
        drafts.append(drafts.pop(0))
        batch = scheduler.schedule(max_prefill_tokens, drafts=drafts[0])
        assert batch.n_tokens <= max_step_tokens
        assert len(batch.sequences) <= max_running
        assert len({s.key for s in batch.sequences}) == len(batch.sequences)
        if max_prefill_tokens is not None:
            # The last token of a prompt's last chunk may pass for a decode.
            assert batch.n_tokens - batch.n_decode_tokens <= max_prefill_tokens
        for s in batch.sequences:
            last = s.n_context + s.n_tokens + max(s.drafts_wanted - 1, 0)
            assert len(s.block_table) * block_tokens >= last
            assert last <= max(max_context_tokens, s.n_context + s.n_known)
            assert s.drafts_wanted in (0, 1, drafts[0])
        results = [model.run(batch) for _ in range(n_runs)]
        assert all(result == results[0] for result in results)
        cancel(cancel_in_flight)
        deliver(scheduler.commit(batch, results[-1]))
        assert blocks.n_free + blocks.n_used == n_blocks
        return batch.n_tokens

    for action in [*(("add", request) for request in first), *plan]:
        if action[0] == "add":
            prompt, output, max_tokens, stop, scored, penalty = action[1]
            params = SamplingParams(
                max_tokens=max_tokens,
                stop_token_ids=stop,
                prompt_logprobs=0 if scored else None,
                repetition_penalty=penalty,
            )
            request = Request(RequestKey(f"r{len(added)}"), tuple(prompt), params, tuple(output))
            added.append(request)
            seen[request.key] = Seen(list(output))
            scheduler.add(request)
        elif action[0] == "cancel":
            cancel(action[1])
        else:
            step(*action[1:])
    idle_steps = 0
    while scheduler.has_work:
        # Each step without a budget computes something, or ends the last request.
        idle_steps += step(None, 1, -1) == 0
        assert idle_steps <= 1
    deliver(scheduler.take_news())

    assert blocks.n_free == n_blocks
    assert scheduler.load() == RouterLoad()
    for request in added:
        check_end(
            request, seen[request.key], request.key in cancelled, blocks.capacity_tokens, max_context_tokens
        )


def check_end(
    request: Request, seen: Seen, cancelled: bool, capacity: int, max_context_tokens: int
) -> None:
    """The request ended once, as it had to."""
    output, reason = expected_output(request, max_context_tokens)
    n_prompt = len(request.prompt_token_ids)
    assert len(seen.ends) == 1
    assert seen.output == output[: len(seen.output)]
    for position, mark in seen.prompt_marks.items():
        assert mark == prompt_mark(request.prompt_token_ids, position)
    if seen.ends[0] == "cancelled":
        assert cancelled
    elif seen.ends[0] == "error":
        n_tokens = n_prompt + len(seen.output)
        assert not n_prompt or n_tokens > min(capacity, max_context_tokens)
        assert seen.error
    else:
        assert (seen.output, seen.ends[0]) == (output, reason)
        if request.params.prompt_logprobs is not None and not request.output_token_ids:
            assert sorted(seen.prompt_marks) == list(range(1, n_prompt))
