"""The router's engine: one thread that schedules, computes and commits steps.

A step is a transaction. It is scheduled once; if the generation is lost while it runs, the same
batch runs again on the next generation. Nothing changes before the commit.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from expertmesh.engine.batch import StepBatch, StepResult
from expertmesh.engine.draft_control import DraftControl
from expertmesh.engine.errors import EngineStoppedError
from expertmesh.engine.exchange.header import StepAgreement
from expertmesh.engine.request import Request, RequestKey, RouterLoad, SequenceNews
from expertmesh.engine.scheduler import DuplicateRequestError
from expertmesh.engine.step_thread import StepThread

if TYPE_CHECKING:
    from expertmesh.engine.budget import StepBudget
    from expertmesh.engine.counting import RoutingCounter
    from expertmesh.engine.follower import GenerationFollower
    from expertmesh.engine.link import ModelVersion, StepLink
    from expertmesh.engine.meter import StepMeter
    from expertmesh.engine.profile import PartTimer
    from expertmesh.engine.queues import VersionQueues

logger = logging.getLogger(__name__)

Sink = Callable[[Sequence[SequenceNews], RouterLoad], None]


class RouterEngine:
    """Runs requests. `submit` and `cancel` may be called from any thread; news go to `sink`, which is
    called on the engine thread and must not block.
    """

    def __init__(
        self,
        *,
        queues: VersionQueues,
        follower: GenerationFollower[StepLink],
        budget: StepBudget,
        counter: RoutingCounter,
        timer: PartTimer,
        sink: Sink,
        drafts: DraftControl | None = None,
        meter: StepMeter | None = None,
        on_step: Callable[[StepBatch, float], None] | None = None,
    ) -> None:
        self._queues = queues
        self._follower = follower
        self._budget = budget
        self._counter = counter
        self._timer = timer
        self._sink = sink
        self._drafts = drafts or DraftControl(0)
        self._n_drafts = 0
        """That the scheduled step makes for each sequence."""
        self._meter = meter
        self._on_step = on_step
        self._inbox: deque[Request | RequestKey] = deque()
        self._batch: tuple[int, StepBatch] | None = None
        """Scheduled and not committed, with the version of its weights."""
        self._last: StepAgreement | None = None
        self._tokens = 0
        self._draft_tokens = 0
        self._accepted_tokens = 0
        self._thread = StepThread(
            "engine", follower, has_work=self._has_work, step=self.step, on_failure=self._fail_all
        )

    # ------------------------------------------------------------ any thread

    def start(self) -> None:
        """Starts the engine thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the engine thread after the step in progress."""
        self._thread.stop(timeout_s)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            EngineStoppedError: the engine has failed or stopped.
        """
        if self._thread.ended:
            raise EngineStoppedError("this router's engine has stopped")
        if self._meter is not None:
            self._meter.arrived(request.key)
        self._inbox.append(request)
        self._follower.notify()

    def cancel(self, key: RequestKey) -> None:
        """Ends a request at the next commit; its blocks are free then."""
        if self._meter is not None:
            self._meter.gone(key)
        self._inbox.append(key)
        self._follower.notify()

    def check(self) -> None:
        """Raises what ended the engine thread, if it has ended."""
        self._thread.check()

    @property
    def tokens(self) -> int:
        """Tokens computed since the start."""
        return self._tokens

    @property
    def draft_tokens(self) -> int:
        """Drafts verified since the start."""
        return self._draft_tokens

    @property
    def accepted_tokens(self) -> int:
        """Drafts accepted since the start."""
        return self._accepted_tokens

    @property
    def load(self) -> RouterLoad:
        """How busy this router is, with the requests that no step has taken up yet."""
        load = self._queues.load()
        new = [entry for entry in tuple(self._inbox) if isinstance(entry, Request)]
        n_tokens = sum(len(r.prompt_token_ids) + len(r.output_token_ids) for r in new)
        return RouterLoad(
            queued_requests=load.queued_requests + len(new),
            running_requests=load.running_requests,
            queued_tokens=load.queued_tokens + n_tokens,
            running_tokens=load.running_tokens,
        )

    @property
    def cache_blocks(self) -> tuple[int, int]:
        """(held by sequences, all) blocks of the paged cache."""
        used = self._queues.n_used_blocks
        return used, used + self._queues.n_free_blocks

    @property
    def n_preemptions(self) -> int:
        """Sequences that gave up their cache blocks to others, since the start."""
        return self._queues.n_preemptions

    @property
    def oldest_weights(self) -> int:
        """The oldest version of the weights that a request began with; 0 when there is none."""
        new = [entry.weights for entry in tuple(self._inbox) if isinstance(entry, Request)]
        return min((version for version in (*new, self._queues.oldest_version) if version), default=0)

    # ------------------------------------------------------------ the engine thread

    def step(self, link: StepLink) -> StepAgreement:
        """Schedule, agree, compute, commit."""
        self._timer.begin()
        self._hold(link.versions)
        model = link.versions[link.turn]
        batch = self._scheduled(model.version)
        self._timer.mark("schedule")
        agreement = link.agree(batch, self._queues.wanted, self._follower.successor)
        self._timer.mark("wait")
        result = None
        if batch.n_tokens:
            result = model.runner.run(batch, self._counter.watch(model.exchange))
        link.finish_step()
        if batch.n_tokens:
            self._batch = None
        if agreement.n_tokens:
            self._commit(model.version, batch, result, agreement)
        return agreement

    def _hold(self, versions: Sequence[ModelVersion]) -> None:
        numbers = [model.version for model in versions]
        self._queues.hold(numbers)
        if self._batch is not None and self._batch[0] not in numbers:
            self._batch = None

    def _scheduled(self, version: int) -> StepBatch:
        """The interrupted step, or else a new one of this version of the weights. While a step of another
        version is to run again, there is none."""
        if self._batch is not None:
            of_version, batch = self._batch
            if of_version != version:
                return StepBatch()
            if self._meter is not None:
                self._meter.steps_repeated += 1
            return batch
        self._take_inbox()
        self._n_drafts = self._drafts.drafts(self._queues.of(version).n_running)
        batch = self._queues.schedule(version, self._chunk_tokens(), self._n_drafts)
        self._emit(self._queues.take_news())
        if batch.n_tokens:
            self._batch = version, batch
            if self._meter is not None:
                self._meter.scheduled(batch)
        return batch

    def _commit(
        self, version: int, batch: StepBatch, result: StepResult | None, agreement: StepAgreement
    ) -> None:
        self._last = agreement
        prefill_tokens = sum(h.tokens - h.decode_tokens for h in agreement.headers)
        if result is not None:
            self._counter.commit()
            self._tokens += batch.n_tokens
            news = self._queues.of(version).commit(batch, result)
            self._draft_tokens += sum(item.draft_tokens for item in news)
            self._accepted_tokens += sum(item.accepted_tokens for item in news)
            self._emit(news)
            self._timer.mark("commit")
        step_ms = self._timer.commit(decode=bool(batch.n_tokens) and prefill_tokens == 0)
        self._budget.observe(step_ms, prefill_tokens)
        if result is not None:
            self._drafts.observe(batch, result, self._n_drafts, step_ms)
        if self._meter is not None and result is not None:
            self._meter.committed(len(batch.sequences), batch.n_tokens, batch.n_decode_tokens, step_ms)
        if self._on_step is not None and result is not None:
            self._on_step(batch, step_ms)

    def _emit(self, news: Sequence[SequenceNews]) -> None:
        if news:
            if self._meter is not None:
                self._meter.told(news)
            self._sink(news, self._queues.load())

    def _has_work(self) -> bool:
        return bool(self._inbox) or self._queues.has_work

    def _take_inbox(self) -> None:
        while self._inbox:
            entry = self._inbox.popleft()
            try:
                if isinstance(entry, Request):
                    self._queues.add(entry)
                else:
                    self._queues.cancel(entry)
            except DuplicateRequestError as error:
                # A second submission of the same attempt is the first one, which goes on.
                logger.warning("%s", error)

    def _chunk_tokens(self) -> int | None:
        headers = self._last.headers if self._last is not None else ()
        return self._budget.chunk_tokens(
            any_decoding=any(h.decode_tokens for h in headers),
            routers_prefilling=sum(h.tokens > h.decode_tokens for h in headers),
        )

    def _fail_all(self, error: BaseException) -> None:
        self._take_inbox()
        self._queues.fail_all(f"the router failed: {error!r}", "router_failed")
        self._emit(self._queues.take_news())
