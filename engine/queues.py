"""The requests of one router by the version of the weights that they began with. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from expertmesh.engine.batch import StepBatch
from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.news import refusal_news
from expertmesh.engine.request import Cause, Request, RequestKey, RouterLoad, SequenceNews
from expertmesh.engine.scheduler import Scheduler
from expertmesh.engine.window_blocks import WindowBlocks


class VersionQueues:
    """A scheduler for each version of the weights, all over one cache: mostly one, two while the requests
    that began before a reload are finishing. One thread uses it.

    Args:
        blocks: the cache's.
        windows: the cache's, too.
        make_scheduler: over both.
        max_running: sequences at once, of all versions together.
    """

    def __init__(
        self,
        blocks: BlockManager,
        windows: WindowBlocks,
        make_scheduler: Callable[[BlockManager, WindowBlocks], Scheduler],
        *,
        max_running: int,
    ) -> None:
        self._blocks = blocks
        self._windows = windows
        self._make_scheduler = make_scheduler
        self._max_running = max_running
        self._schedulers: dict[int, Scheduler] = {}
        """Oldest first. Replaced, never changed: other threads read it."""
        self._news: list[SequenceNews] = []
        self._past_preemptions = 0
        """Of versions that are held no more."""

    def hold(self, versions: Sequence[int]) -> None:
        """From now on these versions are computed, oldest first. Requests of another end with an error."""
        if tuple(self._schedulers) == tuple(versions):
            return
        for version, scheduler in self._schedulers.items():
            if version not in versions:
                scheduler.fail_all(f"weights version {version} is served no more", "router_failed")
                self._news += scheduler.take_news()
                self._past_preemptions += scheduler.n_preemptions
        self._schedulers = {
            version: self._schedulers.get(version) or self._make_scheduler(self._blocks, self._windows)
            for version in versions
        }

    def of(self, version: int) -> Scheduler:
        """The scheduler of a version that is held."""
        return self._schedulers[version]

    def schedule(self, version: int, max_prefill_tokens: int | None, drafts: int = 0) -> StepBatch:
        """Decides the next step of a version. While requests of older weights wait to be admitted, new ones
        are not, or the old ones would never be done."""
        others = [(v, scheduler) for v, scheduler in self._schedulers.items() if v != version]
        max_running = self._max_running - sum(scheduler.n_running for _, scheduler in others)
        if any(scheduler.n_waiting for v, scheduler in others if v < version):
            max_running = 0
        return self._schedulers[version].schedule(max_prefill_tokens, max_running, drafts)

    # ------------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """Queues a request of the version that it names, or else of the newest.

        Raises DuplicateRequestError when its key is queued or running.
        """
        version = request.weights or max(self._schedulers, default=0)
        scheduler = self._schedulers.get(version)
        if scheduler is None:
            why = f"weights version {version} is not served by this router"
            self._news.append(refusal_news(request, why))
        else:
            scheduler.add(request)

    def cancel(self, key: RequestKey) -> None:
        """Ends a request at the next schedule of its version; nothing if it has ended."""
        for scheduler in self._schedulers.values():
            scheduler.cancel(key)

    def fail_all(self, error: str, cause: Cause = "") -> None:
        """Ends every request with an error at once."""
        for scheduler in self._schedulers.values():
            scheduler.fail_all(error, cause)

    def take_news(self) -> list[SequenceNews]:
        """News that came outside of a commit."""
        news, self._news = self._news, []
        for scheduler in self._schedulers.values():
            news += scheduler.take_news()
        return news

    # ------------------------------------------------------------------ state, for any thread

    @property
    def has_work(self) -> bool:
        """Whether a request is queued or running."""
        return any(scheduler.has_work for scheduler in self._schedulers.values())

    @property
    def wanted(self) -> int:
        """One bit for each version, the oldest's lowest: whether it has requests."""
        return sum(scheduler.has_work << i for i, scheduler in enumerate(self._schedulers.values()))

    @property
    def oldest_version(self) -> int:
        """The oldest version that has requests; 0 when none has."""
        return min((v for v, scheduler in self._schedulers.items() if scheduler.has_work), default=0)

    @property
    def n_preemptions(self) -> int:
        """Sequences that gave up their cache blocks to others, since the start."""
        return self._past_preemptions + sum(s.n_preemptions for s in self._schedulers.values())

    @property
    def n_used_blocks(self) -> int:
        """Cache blocks that running sequences hold."""
        return self._blocks.n_used

    @property
    def n_free_blocks(self) -> int:
        """Cache blocks that nobody holds."""
        return self._blocks.n_free

    def load(self) -> RouterLoad:
        """How busy this router is. Off by one step at most."""
        loads = [scheduler.load() for scheduler in self._schedulers.values()]
        return RouterLoad(
            queued_requests=sum(load.queued_requests for load in loads),
            running_requests=sum(load.running_requests for load in loads),
            queued_tokens=sum(load.queued_tokens for load in loads),
            running_tokens=sum(load.running_tokens for load in loads),
        )
