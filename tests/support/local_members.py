"""Routers and expert hosts as threads of one process: the members of a `LocalDeployment`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expertmesh.engine.batch import StepBatch, StepResult
from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.budget import StepBudget
from expertmesh.engine.counting import RoutingCounter
from expertmesh.engine.draft_control import DraftControl
from expertmesh.engine.engine import RouterEngine
from expertmesh.engine.exchange.fused import FusedExchange
from expertmesh.engine.exchange.host import HostExchange
from expertmesh.engine.exchange.sharded import ShardedExchange
from expertmesh.engine.expert_loop import ExpertLoop
from expertmesh.engine.follower import GenerationFollower
from expertmesh.engine.link import FusedLink, HostLink, ModelVersion, ShardedLink
from expertmesh.engine.profile import PartTimer
from expertmesh.engine.queues import VersionQueues
from expertmesh.engine.runner import Runner
from expertmesh.engine.sampler import Sampler
from expertmesh.engine.scheduler import Scheduler
from expertmesh.engine.window_blocks import WindowBlocks
from expertmesh.models.cache import CacheSize
from expertmesh.models.experts import all_experts

if TYPE_CHECKING:
    from local_deployment import LocalDeployment

CPU = torch.device("cpu")


class RecordingSampler(Sampler):
    """Keeps the logits that every token was drawn from."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size, CPU)
        self.logits: dict[tuple[str, int], Tensor] = {}

    def __call__(self, batch: StepBatch, logits_of: Callable[[list[int]], Tensor]) -> StepResult:
        def recorded(rows: list[int]) -> Tensor:
            logits_NV = logits_of(rows)
            places = {}
            row = 0
            for sequence in batch.sequences:
                for offset in range(sequence.n_tokens):
                    places[row] = (sequence.key.request_id, sequence.n_context + offset)
                    row += 1
            for row, logits_V in zip(rows, logits_NV, strict=True):
                self.logits[places[row]] = logits_V.clone()
            return logits_NV

        return super().__call__(batch, recorded)


class _Reports:
    """A member's voice to the director."""

    def __init__(self, deployment: LocalDeployment, rank: int) -> None:
        self._deployment = deployment
        self._rank = rank

    def prepared(self, generation: int) -> None:
        self._deployment.tell("prepared", self._rank, generation)

    def prepare_failed(self, generation: int, reason: str, unmet: bool = False) -> None:
        self._deployment.accuse(generation, reason)

    def abandoned(self, generation: int) -> None:
        self._deployment.tell("abandoned", self._rank, generation)

    def switched(self, generation: int) -> None:
        pass

    def accuse(self, generation: int, reason: str) -> None:
        self._deployment.accuse(generation, reason)

    def wake_request(self, generation: int, epoch: int) -> None:
        threading.Thread(target=self._deployment.wake, args=(generation, epoch)).start()


class LocalRouter:
    def __init__(self, deployment: LocalDeployment, rank: int) -> None:
        self._deployment = deployment
        self._rank = rank
        settings, spec = deployment.settings, deployment.spec
        self.follower: GenerationFollower[Any] = GenerationFollower(_Reports(deployment, rank))
        self.sampler = RecordingSampler(spec.vocab_size)
        self.timer = PartTimer()
        decoders = {version: deployment.decoder(version) for version in deployment.versions(2)}
        layout = spec.cache
        granule = layout.granule_tokens
        block_tokens = -(-settings.block_tokens // granule) * granule
        n_blocks = settings.n_blocks * settings.block_tokens // block_tokens
        self.windows = WindowBlocks(
            layout.windows,
            settings.block_tokens,
            max_running=settings.max_running,
            max_step_tokens=settings.max_step_tokens,
            max_drafts=settings.drafts,
        )
        self.cache = decoders[1].new_cache(
            CacheSize(n_blocks, block_tokens, self.windows.n_blocks, settings.block_tokens)
        )
        self._runners = {
            version: Runner(decoder, self.cache, self.sampler, deployment.mode, CPU, self.timer.mark)
            for version, decoder in decoders.items()
        }
        self.blocks = BlockManager(n_blocks, block_tokens)

        def make_scheduler(blocks: BlockManager, windows: WindowBlocks) -> Scheduler:
            return Scheduler(
                blocks,
                windows=windows,
                max_running=settings.max_running,
                max_step_tokens=settings.max_step_tokens,
                max_context_tokens=spec.max_position_tokens,
            )

        self.engine = RouterEngine(
            queues=VersionQueues(
                self.blocks, self.windows, make_scheduler, max_running=settings.max_running
            ),
            follower=self.follower,
            budget=StepBudget(settings.step_budget_ms, 4),
            counter=RoutingCounter(len(spec.moe_layers), spec.n_experts, CPU),
            timer=self.timer,
            sink=deployment.sink,
            drafts=DraftControl(settings.drafts, adaptive=False),
        )
        self.start, self.check = self.engine.start, self.engine.check
        fused = settings.n_hosts == 0
        self._banks = {v: deployment.bank(all_experts(spec), v) for v in self._runners} if fused else None

    def stop(self) -> None:
        self.engine.stop(10)

    def build(self, number: int) -> Callable[[Callable[[], str | None]], Any]:
        deployment, spec = self._deployment, self._deployment.spec
        runners, banks = self._runners, self._banks
        versions = deployment.versions(number)
        if banks is not None:
            fused = [ModelVersion(v, runners[v], FusedExchange(banks[v], spec.n_experts)) for v in versions]
            return lambda abandoned: FusedLink(number, fused)

        def link(abandoned: Callable[[], str | None]) -> ShardedLink:
            communicator = deployment.communicator(number, self._rank, abandoned)
            exchange = ShardedExchange(
                communicator,
                deployment.layout(number),
                deployment.rows,
                n_experts=spec.n_experts,
                n_moe_layers=len(spec.moe_layers),
            )
            models = [ModelVersion(v, runners[v], exchange) for v in versions]
            return ShardedLink(communicator, exchange, models)

        return link


class LocalHost:
    def __init__(self, deployment: LocalDeployment, rank: int) -> None:
        self._deployment = deployment
        self._rank = rank
        self.follower: GenerationFollower[HostLink] = GenerationFollower(_Reports(deployment, rank))
        self.loop = ExpertLoop(follower=self.follower, timer=PartTimer())
        self.start, self.check = self.loop.start, self.loop.check

    def stop(self) -> None:
        self.loop.stop(10)

    def build(self, number: int) -> Callable[[Callable[[], str | None]], HostLink]:
        deployment = self._deployment

        def link(abandoned: Callable[[], str | None]) -> HostLink:
            layout = deployment.layout(number)
            host = self._rank - layout.n_routers
            slots = [layer[host] for layer in layout.slots]
            banks = [deployment.bank(slots, version) for version in deployment.versions(number)]
            communicator = deployment.communicator(number, self._rank, abandoned)
            return HostLink(communicator, HostExchange(communicator, layout, deployment.rows, banks))

        return link
