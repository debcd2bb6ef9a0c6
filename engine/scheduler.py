"""Decides what each step computes: continuous batching with chunked prefill. No torch.

A step is a transaction: `schedule` decides once and takes the blocks, the batch may then run any
number of times, and `commit` takes its outcome in, once. One thread uses a scheduler.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from expertmesh.engine.batch import ScheduledSequence, StepBatch, StepResult
from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.draft_room import DraftPlan, plan_drafts
from expertmesh.engine.news import end_news
from expertmesh.engine.outcome import Limits, StepOrderError, check_fits, take_outcome
from expertmesh.engine.request import (
    Cause,
    FinishReason,
    Request,
    RequestKey,
    RouterLoad,
    Sequence,
    SequenceNews,
)
from expertmesh.engine.window_blocks import WindowBlocks


class DuplicateRequestError(ValueError):
    """A request was added whose key is queued or running already."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """Why a request ends from outside at the next schedule."""

    reason: FinishReason
    error: str = ""
    cause: Cause = ""


class Scheduler:
    """The queue of one router and the sequences that run on it.

    Sequences run in the order of their arrival. Running ones that only wait for their next token
    (decodes) always stand before those whose prompt is not computed yet, because prompts are
    computed strictly one after the other. A sequence gets the blocks of all its tokens when it is
    admitted, and one more whenever it grows into it; when none is free, the latest arrival gives its
    own back and is computed again later, its output tokens kept.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_running: int,
        max_step_tokens: int,
        max_context_tokens: int,
        windows: WindowBlocks | None = None,
    ) -> None:
        self._blocks = blocks
        self._windows = windows or WindowBlocks((), 1, max_running=0, max_step_tokens=0)
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._limits = Limits(max_context_tokens)
        self._waiting: OrderedDict[RequestKey, Sequence] = OrderedDict()
        self._running: list[Sequence] = []
        self._sequences: dict[RequestKey, Sequence] = {}
        self._endings: dict[RequestKey, _Ending] = {}
        self._news: list[SequenceNews] = []
        self._in_flight: StepBatch | None = None
        self._waiting_tokens = 0
        self.n_preemptions = 0
        """Sequences that gave their blocks back, since the start."""

    # ------------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """Queues a request. One that can never run ends at once, with news of its error.

        Raises DuplicateRequestError when its key is queued or running.
        """
        if request.key in self._sequences:
            raise DuplicateRequestError(
                f"request {request.key.request_id!r}, attempt {request.key.attempt}, is queued already; "
                "raise the attempt to submit it again"
            )
        sequence = Sequence.from_request(request)
        if sequence.n_output or request.params.prompt_logprobs is None:
            # The first output token comes with the prompt's last score, so a resumed one has them all.
            sequence.n_prompt_scored = max(1, sequence.n_prompt)
        if refusal := self._refusal(sequence):
            self._news.append(end_news(sequence, "error", refusal, "does_not_fit"))
        elif not self._limits.draws(sequence) and sequence.n_prompt_scored >= sequence.n_prompt:
            self._news.append(end_news(sequence, "length"))
        else:
            self._sequences[request.key] = sequence
            self._waiting[request.key] = sequence
            self._waiting_tokens += sequence.n_pending

    def cancel(self, key: RequestKey) -> None:
        """Ends a request at the next schedule, which frees its blocks; nothing if it has ended."""
        if key in self._sequences:
            self._endings[key] = _Ending("cancelled")

    def fail(self, key: RequestKey, error: str) -> None:
        """Ends a request with an error at the next schedule; nothing if it has ended."""
        if key in self._sequences:
            self._endings[key] = _Ending("error", error)

    def fail_all(self, error: str, cause: Cause = "") -> None:
        """Ends every request with an error at once and gives up the step in flight, if any."""
        self._in_flight = None
        for key in tuple(self._sequences):
            self._endings[key] = _Ending("error", error, cause)
        self._apply_endings()

    # ------------------------------------------------------------------ state

    @property
    def has_work(self) -> bool:
        """Whether a request is queued or running, so that schedule has something to do."""
        return bool(self._sequences)

    @property
    def n_waiting(self) -> int:
        """Requests that wait for cache blocks or for their turn."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Sequences that hold cache blocks."""
        return len(self._running)

    @property
    def n_free_blocks(self) -> int:
        """Cache blocks that nobody holds."""
        return self._blocks.n_free

    @property
    def n_used_blocks(self) -> int:
        """Cache blocks that running sequences hold."""
        return self._blocks.n_used

    @property
    def n_decodes(self) -> int:
        """Running sequences that wait for their next token only."""
        return sum(1 for s in self._running if _is_decode(s))

    def load(self) -> RouterLoad:
        """How busy this router is. Callable from another thread: off by one step at most."""
        running = tuple(self._running)
        # Only the latest of the running sequences can be in the middle of its prompt.
        in_prefill = max(0, running[-1].n_pending - 1) if running else 0
        return RouterLoad(
            queued_requests=len(self._waiting),
            running_requests=len(running),
            queued_tokens=self._waiting_tokens + in_prefill,
            running_tokens=sum(len(sequence.token_ids) for sequence in running),
        )

    def take_news(self) -> list[SequenceNews]:
        """News that came outside of a commit: refusals, cancellations, failures.

        `commit` brings them too; this is for a router without a step to commit.
        """
        news, self._news = self._news, []
        return news

    # ------------------------------------------------------------------ a step

    def schedule(
        self, max_prefill_tokens: int | None = None, max_running: int | None = None, drafts: int = 0
    ) -> StepBatch:
        """Decides the next step and takes its blocks; an empty batch needs no commit.

        `max_prefill_tokens` bounds the prompt tokens of this step; nobody leaves the queue while
        `max_running` sequences run; `drafts` are made for each sequence that gets a token. Raises
        StepOrderError while a batch has not been committed.
        """
        if self._in_flight is not None:
            raise StepOrderError("the step in flight must be committed before the next one is scheduled")
        self._apply_endings()
        n_preempted = self.n_preemptions
        scheduled = self._schedule_decodes(drafts)
        budget = self._max_step_tokens - sum(s.n_tokens for s in scheduled)
        if max_prefill_tokens is not None:
            budget = min(budget, max_prefill_tokens)
        for sequence in self._running[len(scheduled) :]:
            if budget <= 0:
                break
            n_tokens = min(sequence.n_pending, budget)
            scheduled.append(self._scheduled(sequence, n_tokens, drafts))
            budget -= n_tokens
        # Blocks that were just taken from a running sequence go to those that run on.
        most_running = self._max_running if max_running is None else min(max_running, self._max_running)
        if self.n_preemptions == n_preempted:
            while budget > 0 and len(self._running) < most_running and self._admit():
                sequence = self._running[-1]
                n_tokens = min(sequence.n_pending, budget)
                scheduled.append(self._scheduled(sequence, n_tokens, drafts))
                budget -= n_tokens
        batch = StepBatch(tuple(scheduled))
        if scheduled:
            self._in_flight = batch
        return batch

    def commit(self, batch: StepBatch, result: StepResult) -> list[SequenceNews]:
        """Takes a step's outcome in; the only place where sequences gain tokens.

        Raises StepOrderError, changing nothing, when the batch is not the one in flight, has been
        committed before, or the result does not fit it.
        """
        if batch.sequences:
            if batch is not self._in_flight:
                raise StepOrderError("only the batch that schedule gave last is committed, and once")
            check_fits(batch, result)
            self._in_flight = None
        news = self.take_news()
        n_finished = 0
        for scheduled, outcome in zip(batch.sequences, result.results, strict=True):
            sequence = self._sequences[scheduled.key]
            item = take_outcome(sequence, scheduled, outcome, self._limits)
            if item is not None:
                news.append(item)
            if item is not None and item.finish_reason is not None:
                n_finished += 1
                self._free_blocks(sequence)
                del self._sequences[sequence.key]
                self._endings.pop(sequence.key, None)
            else:
                self._windows.trim(sequence.key, sequence.n_computed)
        if n_finished:
            self._running = [s for s in self._running if s.key in self._sequences]
        return news

    # ------------------------------------------------------------------ parts of schedule

    def _apply_endings(self) -> None:
        endings, self._endings = self._endings, {}
        for key, ending in endings.items():
            self._end(self._sequences[key], ending)

    def _end(self, sequence: Sequence, ending: _Ending) -> None:
        """Ends a request between steps, wherever it is, and frees its blocks."""
        del self._sequences[sequence.key]
        if self._waiting.pop(sequence.key, None) is not None:
            self._waiting_tokens -= sequence.n_pending
        else:
            self._running.remove(sequence)
        self._free_blocks(sequence)
        self._news.append(end_news(sequence, ending.reason, ending.error, ending.cause))

    def _free_blocks(self, sequence: Sequence) -> None:
        self._blocks.free(sequence.block_table)
        self._windows.release(sequence.key)

    def _schedule_decodes(self, drafts: int) -> list[ScheduledSequence]:
        """Takes every decode in, in order; the latest arrivals give way when blocks run out."""
        n_decodes = 0
        while n_decodes < len(self._running):
            sequence = self._running[n_decodes]
            if not _is_decode(sequence):
                break
            n_decodes += self._grow(sequence)
        scheduled: list[ScheduledSequence] = []
        spare_rows = self._max_step_tokens - n_decodes
        # Drafts get what is left once all have the block of their next token.
        for sequence in self._running[:n_decodes]:
            scheduled.append(self._scheduled(sequence, 1, drafts, spare_rows))
            spare_rows -= scheduled[-1].n_drafts
        return scheduled

    def _grow(self, sequence: Sequence) -> bool:
        """Gives a running sequence the block of its last token; False if it stopped running instead."""
        n_tokens = len(sequence.token_ids)
        if n_tokens <= len(sequence.block_table) * self._blocks.block_tokens:
            return True
        if refusal := self._refusal(sequence):
            self._end(sequence, _Ending("error", refusal, "does_not_fit"))
            return False
        while self._blocks.n_free == 0:
            latest = self._running[-1]
            self._preempt(latest)
            if latest is sequence:
                return False
        sequence.block_table = self._blocks.grow(sequence.block_table, n_tokens)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Sends the latest running sequence back to the front of the queue, nothing of it computed."""
        self._running.pop()
        self._free_blocks(sequence)
        sequence.block_table = ()
        sequence.n_computed = 0
        sequence.drafts = ()
        self._waiting[sequence.key] = sequence
        self._waiting.move_to_end(sequence.key, last=False)
        self._waiting_tokens += sequence.n_pending
        self.n_preemptions += 1

    def _admit(self) -> bool:
        """Moves the head of the queue to the running sequences, with blocks for all its tokens."""
        if not self._waiting:
            return False
        key, sequence = next(iter(self._waiting.items()))
        n_tokens = len(sequence.token_ids)
        if self._blocks.blocks_for(n_tokens) > self._blocks.n_free:
            return False
        del self._waiting[key]
        self._waiting_tokens -= sequence.n_pending
        sequence.block_table = self._blocks.grow((), n_tokens)
        self._running.append(sequence)
        return True

    def _scheduled(
        self, sequence: Sequence, n_tokens: int, drafts: int, spare_rows: int = 0
    ) -> ScheduledSequence:
        params = sequence.params
        start = sequence.n_computed
        end = start + n_tokens
        samples = end == len(sequence.token_ids) and self._limits.draws(sequence)
        plan = DraftPlan(end=end)
        if samples and (drafts or sequence.drafts):
            plan = plan_drafts(sequence, self._blocks, self._limits, most=drafts, spare_rows=spare_rows)
        table = sequence.block_table
        return ScheduledSequence(
            key=sequence.key,
            params=params,
            token_ids=(*sequence.token_ids[start:end], *plan.verified),
            n_context=start,
            block_table=table if samples else table[: self._blocks.blocks_for(end)],
            samples=samples,
            n_prompt=sequence.n_prompt,
            prompt_targets=_prompt_targets(sequence, start, end),
            penalty_token_ids=tuple(sequence.token_ids) if samples and params.penalised else (),
            windows=self._windows.cover(sequence.key, plan.end),
            n_drafts=len(plan.verified),
            drafts_wanted=plan.wanted,
            next_token_id=None if end == len(sequence.token_ids) else sequence.token_ids[end],
        )

    def _refusal(self, sequence: Sequence) -> str:
        """Why a sequence can never run on this router; empty if it can."""
        n_tokens = len(sequence.token_ids)
        if not sequence.n_prompt:
            return "the prompt is empty; send at least one token"
        if n_tokens > self._limits.max_context_tokens:
            return (
                f"{n_tokens} tokens of prompt and answer exceed the context of "
                f"{self._limits.max_context_tokens} tokens; shorten the prompt"
            )
        if n_tokens > self._blocks.capacity_tokens:
            return (
                f"{n_tokens} tokens of prompt and answer exceed the cache of "
                f"{self._blocks.capacity_tokens} tokens of this router; raise engine.kv_cache_tokens "
                "or shorten the request"
            )
        return ""


def _is_decode(sequence: Sequence) -> bool:
    return sequence.n_computed > 0 and sequence.n_pending == 1


def _prompt_targets(sequence: Sequence, start: int, end: int) -> tuple[int, ...]:
    """Prompt tokens that follow the chunk's positions, unless all of them were scored before."""
    last = min(end, sequence.n_prompt - 1)
    if last < sequence.n_prompt_scored or last <= start:
        return ()
    return tuple(sequence.token_ids[start + 1 : last + 1])
