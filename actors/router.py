"""The router: attention, gate, head, cache, scheduler and sampler on one device."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

from ray import serve

from expertmesh.actors.coordinator_access import CoordinatorFinder
from expertmesh.actors.logs import set_up_logging
from expertmesh.actors.metrics.members import new_meter, tell_router
from expertmesh.actors.metrics.ray_sink import metric_sink
from expertmesh.actors.replica import GenerationEvents, ReplicaRuntime, hand_over
from expertmesh.actors.reporting import LoadingProgress, report_load
from expertmesh.actors.router_model import RouterModel
from expertmesh.actors.router_stream import RouterStreamServicer
from expertmesh.actors.tracing.process import router_tracing
from expertmesh.cluster.load import Load
from expertmesh.cluster.member import MemberClient
from expertmesh.cluster.types import Generation, Role
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.engine.engine import RouterEngine
from expertmesh.engine.exchange.rendezvous import Store
from expertmesh.engine.follower import GenerationFollower
from expertmesh.engine.link import StepLink
from expertmesh.engine.profile import PartTimer
from expertmesh.proto.v1 import internal_pb2_grpc as pb_grpc

STOP_TIMEOUT_S = 10.0


class Router:
    """Computes everything but the routed experts (fused mode: those, too).

    It joins at once and loads its weights when the first generation is prepared, so that everybody
    loads at the same time and is seen doing it.
    """

    @classmethod
    async def start(cls, config_json: str) -> Router:
        """Listens for gateways and joins the deployment; `config_json` is a `DeploymentConfig`."""
        router = cls(DeploymentConfig.model_validate_json(config_json))
        await router._join()
        return router

    def __init__(self, config: DeploymentConfig) -> None:
        self._runtime = ReplicaRuntime.create(config, config.router.threads, config.router.replicas)
        self._store = Store(self._runtime.host)
        self._replica_id = replica_id = serve.get_replica_context().replica_id.unique_id
        set_up_logging(config.logging, application=config.name, process="router", replica=replica_id)
        self._tracing = router_tracing(config, replica_id)
        self._streams = RouterStreamServicer(
            config.failure.lease_s, self._tracing.traces if self._tracing else None
        )
        self._finder = CoordinatorFinder(config)
        self._server = self._finder.trust.server()
        pb_grpc.add_RouterStreamServicer_to_server(self._streams, self._server.grpc)
        self._metrics = metric_sink(config, "router", replica_id)
        self._meter = new_meter() if config.metrics.enabled else None
        self._timer = PartTimer()
        self._progress = LoadingProgress()
        self._loading = threading.Lock()
        self._model: RouterModel | None = None
        self._engine: RouterEngine | None = None

    async def _join(self) -> None:
        runtime = self._runtime
        stream_address = await self._server.start(runtime.host)
        self._member = MemberClient(
            runtime.member(
                Role.ROUTER,
                self._replica_id,
                stream_address=stream_address,
                store_address=self._store.address,
            ),
            self._finder,
            runtime.config.failure.heartbeat_s,
            probe_host=runtime.host,
            trust=self._finder.trust,
        )
        self._follower: GenerationFollower[StepLink] = GenerationFollower(self._member)
        self._events = GenerationEvents(self._follower, self._prepare, lambda: os._exit(1))
        await self._member.start(self._events)
        self._reporting = asyncio.create_task(report_load(self._member, self._load, self._tell))

    def _prepare(self, generation: Generation, abandoned: Callable[[], str | None]) -> StepLink:
        with self._loading:
            model = self._model or RouterModel(
                self._runtime,
                self._timer,
                self._progress,
                lambda: self._follower.live_number,
                generation.weights[0],
            )
            versions = model.hold(generation, abandoned)
            if self._engine is None:
                self._engine = model.engine(
                    self._follower,
                    self._streams,
                    self._meter,
                    self._tracing.traces.step if self._tracing else None,
                )
                self._streams.attach(self._engine)
                self._engine.start()
                self._model = model
        return model.link(generation, versions, abandoned)

    def _load(self) -> Load:
        progress = self._progress
        model, engine = self._model, self._engine
        if model is None or engine is None:
            return Load(loaded_bytes=progress.loaded_bytes, total_bytes=progress.total_bytes)
        model.forget()
        profile = self._timer.profile()
        blocks_used, blocks = engine.cache_blocks
        generation, host_rows = model.counter.host_rows()
        requests = engine.load
        return Load(
            tokens=engine.tokens,
            expert_rows=tuple(model.counter.rows()),
            decode_steps=profile.steps,
            decode_part_ms=profile.part_ms,
            cache_blocks=blocks,
            cache_blocks_used=blocks_used,
            loaded_bytes=progress.loaded_bytes,
            total_bytes=progress.total_bytes,
            host_rows_generation=generation,
            host_rows=tuple(host_rows),
            running_requests=requests.running_requests,
            queued_requests=requests.queued_requests,
            queued_tokens=requests.queued_tokens,
            busy_s=self._timer.busy_s,
            oldest_weights=engine.oldest_weights,
            draft_tokens=engine.draft_tokens,
            accepted_tokens=engine.accepted_tokens,
        )

    def _tell(self, load: Load) -> None:
        engine = self._engine
        if engine is not None and self._meter is not None:
            tell_router(self._metrics, load, self._runtime.traffic, self._meter, engine.n_preemptions)

    def check_health(self) -> None:
        """Raises when the engine thread has died."""
        if self._engine is not None:
            self._engine.check()

    async def leave(self) -> None:
        """Hands over what is under way, takes leave of the coordinator and ends the threads."""
        self._streams.leave()
        await hand_over(self._member, self._events)
        self._reporting.cancel()
        await self._member.close()
        self._follower.stop()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop, STOP_TIMEOUT_S)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        await self._server.stop(grace_s=1.0)
