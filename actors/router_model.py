"""What a router computes with: weights, cache, engine, and its link to each generation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from expertmesh.actors.cache_size import cache_size
from expertmesh.actors.holdings import Holdings
from expertmesh.actors.replica import ReplicaRuntime, rank_layout, row_format, weights_dtype
from expertmesh.actors.reporting import LoadingProgress
from expertmesh.actors.router_stream import RouterStreamServicer
from expertmesh.cluster.types import Generation, Weights
from expertmesh.engine.batch import StepBatch
from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.budget import StepBudget
from expertmesh.engine.counting import RoutingCounter
from expertmesh.engine.draft_control import DraftControl
from expertmesh.engine.engine import RouterEngine
from expertmesh.engine.exchange.fused import FusedExchange
from expertmesh.engine.exchange.sharded import ShardedExchange
from expertmesh.engine.follower import GenerationFollower
from expertmesh.engine.link import FusedLink, ModelVersion, ShardedLink, StepLink
from expertmesh.engine.meter import StepMeter
from expertmesh.engine.profile import PartTimer
from expertmesh.engine.queues import VersionQueues
from expertmesh.engine.runner import Runner
from expertmesh.engine.sampler import Sampler
from expertmesh.engine.scheduler import Scheduler
from expertmesh.engine.window_blocks import WindowBlocks
from expertmesh.models.cache import PagedCache
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.decoder import Decoder
from expertmesh.models.errors import LoadCancelledError
from expertmesh.models.expert_reader import held_bytes
from expertmesh.models.expert_store import Cancelled, ExpertStore
from expertmesh.models.experts import ExpertBank, all_experts
from expertmesh.models.names import router_tensors
from expertmesh.models.spec import ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """One version of the weights in memory."""

    weights: Weights
    runner: Runner
    bank: ExpertBank | None
    """All experts in the fused mode, else None."""


class RouterModel:
    """The weights of one router, version by version, and what is built on them.

    Args:
        live_number: the generation that is live here, 0 for none.
        weights: the version that the first generation asks for; its architecture is this router's.
    """

    def __init__(
        self,
        runtime: ReplicaRuntime,
        timer: PartTimer,
        progress: LoadingProgress,
        live_number: Callable[[], int],
        weights: Weights,
    ) -> None:
        config = runtime.config
        self._runtime = runtime
        self._timer = timer
        self._progress = progress
        self._live_number = live_number
        self.spec: ModelSpec = runtime.open_weights(weights, None).spec
        self._dtype = weights_dtype(config, self.spec)
        self._max_context_tokens = config.model.max_context_tokens or self.spec.max_position_tokens
        self._n_moe_layers = len(self.spec.moe_layers)
        self._cache_size, self._windows = cache_size(config, self.spec, self._dtype)
        self._cache: PagedCache | None = None
        self._versions: Holdings[tuple[LoadedVersion, ...]] = Holdings(live_number)
        self.counter = RoutingCounter(self._n_moe_layers, self.spec.n_experts, runtime.device)

    # ------------------------------------------------------------ weights

    def hold(self, generation: Generation, abandoned: Cancelled) -> tuple[LoadedVersion, ...]:
        """Loads the versions of the weights that a generation needs and this router does not have; long.

        Raises:
            CheckpointError: one cannot be served, or not in the place of the others.
            RoomError: there is no memory for it beside the others.
            LoadCancelledError: the generation was given up meanwhile.
        """
        known = {loaded.weights: loaded for versions in self._versions.items for loaded in versions}
        versions = []
        for weights in generation.weights:
            loaded = known.get(weights)
            if loaded is None:
                checkpoint = self._runtime.open_weights(weights, self.spec)
                if known:
                    needed_bytes = self._needed_bytes(checkpoint)
                    self._runtime.check_room(needed_bytes, generation, weights.label)
                loaded = self._load(weights, checkpoint, abandoned)
            versions.append(loaded)
        self._versions.keep(generation.number, tuple(versions), abandoned)
        return tuple(versions)

    def forget(self) -> None:
        """Drops versions that no generation needs any more. Call it from time to time."""
        self._versions.forget()

    def _needed_bytes(self, checkpoint: Checkpoint) -> int:
        n_values = 0
        for ref in router_tensors(checkpoint.names, self.spec):
            n_values += math.prod(ref.shape)
        n_bytes = n_values * self._dtype.itemsize
        if self._runtime.config.fused:
            held_as = self._runtime.config.experts.weights
            n_bytes += self.spec.n_experts * sum(
                held_bytes(checkpoint, layer, self._dtype, held_as) for layer in self.spec.moe_layers
            )
        return n_bytes

    def _load(self, weights: Weights, checkpoint: Checkpoint, abandoned: Cancelled) -> LoadedVersion:
        runtime, started_s = self._runtime, time.monotonic()
        background = self._live_number() != 0
        self._progress.begin()

        def progress(done_bytes: int, total_bytes: int) -> None:
            self._progress(done_bytes, total_bytes)
            if reason := abandoned():
                raise LoadCancelledError(f"loading weights was cancelled: {reason}")

        decoder = Decoder.load(
            checkpoint,
            self.spec,
            mode=runtime.mode,
            dtype=self._dtype,
            device=runtime.device,
            max_tokens=self._max_context_tokens,
            progress=progress,
            background=background,
        )
        bank = None
        if runtime.config.fused:
            self._progress.begin()
            store = ExpertStore(
                checkpoint,
                self.spec,
                mode=runtime.mode,
                dtype=self._dtype,
                device=runtime.device,
                held_as=runtime.config.experts.weights,
            )
            bank = store.bank(
                all_experts(self.spec), abandoned, progress=self._progress, background=background
            )
        if self._cache is None:
            self._cache = decoder.new_cache(self._cache_size)
        runner = Runner(
            decoder=decoder,
            cache=self._cache,
            sampler=Sampler(self.spec.vocab_size, runtime.device),
            mode=runtime.mode,
            device=runtime.device,
            mark=self._timer.mark,
        )
        logger.info("%s loaded in %.1f s", weights.label, time.monotonic() - started_s)
        return LoadedVersion(weights, runner, bank)

    # ------------------------------------------------------------ what steps

    def engine(
        self,
        follower: GenerationFollower[StepLink],
        streams: RouterStreamServicer,
        meter: StepMeter | None = None,
        on_step: Callable[[StepBatch, float], None] | None = None,
    ) -> RouterEngine:
        """The engine over the cache, whatever the version of the weights."""
        config, size = self._runtime.config, self._cache_size

        def make_scheduler(blocks: BlockManager, windows: WindowBlocks) -> Scheduler:
            return Scheduler(
                blocks,
                windows=windows,
                max_running=config.scheduler.max_running,
                max_step_tokens=config.scheduler.max_step_tokens,
                # An answer that outgrows the cache ends with "length", as one that outgrows the context.
                max_context_tokens=min(self._max_context_tokens, size.n_blocks * size.block_tokens),
            )

        return RouterEngine(
            queues=VersionQueues(
                BlockManager(size.n_blocks, size.block_tokens),
                self._windows,
                make_scheduler,
                max_running=config.scheduler.max_running,
            ),
            follower=follower,
            budget=StepBudget(config.scheduler.step_budget_ms, config.scheduler.min_chunk_tokens),
            counter=self.counter,
            timer=self._timer,
            sink=streams.sink,
            drafts=DraftControl(config.speculative.max_drafts, config.speculative.adaptive),
            meter=meter,
            on_step=on_step,
        )

    def link(
        self,
        generation: Generation,
        versions: tuple[LoadedVersion, ...],
        abandoned: Callable[[], str | None],
    ) -> StepLink:
        """What the engine steps with in a generation."""
        if self._runtime.config.fused:
            return FusedLink(generation.number, [self._fused(loaded) for loaded in versions])
        communicator = self._runtime.communicator(generation, abandoned)
        exchange = ShardedExchange(
            communicator,
            rank_layout(generation, self.spec),
            row_format(self.spec, self._dtype),
            n_experts=self.spec.n_experts,
            n_moe_layers=self._n_moe_layers,
        )
        models = [ModelVersion(loaded.weights.version, loaded.runner, exchange) for loaded in versions]
        return ShardedLink(communicator, exchange, models)

    def _fused(self, loaded: LoadedVersion) -> ModelVersion:
        assert loaded.bank is not None
        exchange = FusedExchange(loaded.bank, self.spec.n_experts, self._timer.mark)
        return ModelVersion(loaded.weights.version, loaded.runner, exchange)
