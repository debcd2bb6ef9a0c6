"""The router replica: attention, gate, head, cache, scheduler and sampler on one device."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import grpc.aio
from ray import serve

from expertmesh.actors.coordinator import coordinator_finder
from expertmesh.actors.replica import (
    GenerationEvents,
    ReplicaRuntime,
    rank_layout,
    row_format,
    weights_dtype,
)
from expertmesh.actors.reporting import report_load
from expertmesh.actors.router_stream import RouterStreamServicer
from expertmesh.cluster.member import MemberClient
from expertmesh.cluster.types import Generation, Role
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.engine.block_manager import BlockManager
from expertmesh.engine.budget import StepBudget
from expertmesh.engine.counting import RoutingCounter
from expertmesh.engine.engine import RouterEngine
from expertmesh.engine.exchange.fused import FusedExchange
from expertmesh.engine.exchange.rendezvous import Store
from expertmesh.engine.exchange.sharded import ShardedExchange
from expertmesh.engine.follower import GenerationFollower
from expertmesh.engine.link import FusedLink, ShardedLink, StepLink
from expertmesh.engine.profile import PartTimer
from expertmesh.engine.runner import Runner
from expertmesh.engine.sampler import Sampler
from expertmesh.engine.scheduler import Scheduler
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.decoder import Decoder
from expertmesh.models.experts import ExpertBank, all_experts
from expertmesh.models.spec import ModelSpec
from expertmesh.proto.v1 import internal_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0


class Router:
    """A Serve replica that computes everything but the routed experts (fused mode: those, too)."""

    async def __init__(self, config_json: str) -> None:  # type: ignore[misc]  # Serve awaits it
        config = DeploymentConfig.model_validate_json(config_json)
        self._runtime = ReplicaRuntime.create(config, config.router.threads, config.router.replicas)
        self._store = Store(self._runtime.host)
        self._streams = RouterStreamServicer(config.failure.lease_s)
        self._server = grpc.aio.server()
        pb_grpc.add_RouterStreamServicer_to_server(self._streams, self._server)
        port = self._server.add_insecure_port(f"{self._runtime.host}:0")
        await self._server.start()

        self._timer = PartTimer()
        self._model = await asyncio.to_thread(_RouterModel, self._runtime, self._timer)
        replica = serve.get_replica_context().replica_id.unique_id
        self._member = MemberClient(
            self._runtime.member(
                Role.ROUTER,
                replica,
                stream_address=f"{self._runtime.host}:{port}",
                store_address=self._store.address,
            ),
            coordinator_finder(config),
            config.failure.heartbeat_s,
        )
        self._follower: GenerationFollower[StepLink] = GenerationFollower(self._member)
        events = GenerationEvents(self._follower, self._prepare, lambda: os._exit(1))
        self._engine = self._model.engine(self._follower, self._streams)
        self._streams.attach(self._engine)
        self._engine.start()
        await self._member.start(events)
        self._reporting = asyncio.create_task(
            report_load(
                self._member,
                lambda: self._engine.tokens,
                self._model.counter.rows,
                self._timer.profile,
                lambda: self._engine.cache_blocks,
            )
        )

    def _prepare(self, generation: Generation, abandoned: Callable[[], str | None]) -> StepLink:
        return self._model.link(generation, abandoned)

    def check_health(self) -> None:
        """Serve's health check: raises when the engine thread has died."""
        self._engine.check()

    async def __del__(self) -> None:
        self._reporting.cancel()
        await self._member.close()
        await asyncio.to_thread(self._engine.stop, STOP_TIMEOUT_S)
        await self._server.stop(grace=1.0)


class _RouterModel:
    """Weights, cache and what is built on them: made once, in a thread, before the replica joins."""

    def __init__(self, runtime: ReplicaRuntime, timer: PartTimer) -> None:
        config = runtime.config
        started_s = time.monotonic()
        self._runtime = runtime
        self._timer = timer
        checkpoint = Checkpoint.open(Path(config.model.path))
        self.spec: ModelSpec = checkpoint.spec
        self._dtype = weights_dtype(config, self.spec)
        self._max_context_tokens = config.model.max_context_tokens or self.spec.max_position_tokens
        self._n_moe_layers = len(self.spec.moe_layers)
        self._decoder = Decoder.load(
            checkpoint,
            self.spec,
            mode=runtime.mode,
            dtype=self._dtype,
            device=runtime.device,
            max_tokens=self._max_context_tokens,
        )
        self._bank: ExpertBank | None = None
        if config.fused:
            self._bank = ExpertBank.load(
                checkpoint,
                self.spec,
                all_experts(self.spec),
                mode=runtime.mode,
                dtype=self._dtype,
                device=runtime.device,
            )
        self.counter = RoutingCounter(self._n_moe_layers, self.spec.n_experts, runtime.device)
        logger.info("weights loaded in %.1f s", time.monotonic() - started_s)

    def engine(self, follower: GenerationFollower[StepLink], streams: RouterStreamServicer) -> RouterEngine:
        """The engine over these weights."""
        config = self._runtime.config
        block_tokens = config.engine.block_tokens
        cache_tokens = config.engine.kv_cache_tokens or (
            config.engine.kv_cache_bytes // self._decoder.cache_bytes_per_token
        )
        n_blocks = max(1, cache_tokens // block_tokens)
        runner = Runner(
            decoder=self._decoder,
            cache=self._decoder.new_cache(n_blocks, block_tokens),
            sampler=Sampler(self.spec.vocab_size, self._runtime.device),
            mode=self._runtime.mode,
            device=self._runtime.device,
            mark=self._timer.mark,
        )
        scheduler = Scheduler(
            BlockManager(n_blocks, block_tokens),
            max_running=config.scheduler.max_running,
            max_step_tokens=config.scheduler.max_step_tokens,
            # An answer that outgrows the cache ends with "length", as one that outgrows the context.
            max_context_tokens=min(self._max_context_tokens, n_blocks * block_tokens),
        )
        return RouterEngine(
            runner=runner,
            scheduler=scheduler,
            follower=follower,
            budget=StepBudget(config.scheduler.step_budget_ms, config.scheduler.min_chunk_tokens),
            counter=self.counter,
            timer=self._timer,
            sink=streams.sink,
        )

    def link(self, generation: Generation, abandoned: Callable[[], str | None]) -> StepLink:
        """What the engine steps with in a generation."""
        if self._bank is not None:
            return FusedLink(
                generation.number, FusedExchange(self._bank, self.spec.n_experts, self._timer.mark)
            )
        communicator = self._runtime.communicator(generation, abandoned)
        exchange = ShardedExchange(
            communicator,
            rank_layout(generation),
            row_format(self.spec, self._dtype),
            n_experts=self.spec.n_experts,
            n_moe_layers=self._n_moe_layers,
        )
        return ShardedLink(communicator, exchange, self._n_moe_layers)
