"""The expert host replica: a slice of the routed experts of every MoE layer on one device."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ray import serve

from expertmesh.actors.coordinator import coordinator_finder
from expertmesh.actors.replica import (
    GenerationEvents,
    ReplicaRuntime,
    hand_over,
    rank_layout,
    row_format,
    weights_dtype,
)
from expertmesh.actors.reporting import LoadingProgress, report_load
from expertmesh.cluster.load import Load
from expertmesh.cluster.member import MemberClient
from expertmesh.cluster.types import Generation, Role
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.engine.exchange.host import HostExchange
from expertmesh.engine.expert_loop import ExpertLoop
from expertmesh.engine.follower import GenerationFollower
from expertmesh.engine.link import HostLink
from expertmesh.engine.profile import PartTimer
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.experts import ExpertBank

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0

Slots = tuple[tuple[int, ...], ...]


class ExpertHost:
    """A Serve replica that serves its slots of every generation it is a member of."""

    async def __init__(self, config_json: str) -> None:  # type: ignore[misc]  # Serve awaits it
        config = DeploymentConfig.model_validate_json(config_json)
        self._runtime = ReplicaRuntime.create(config, config.experts.threads, config.experts.replicas)
        self._checkpoint = await asyncio.to_thread(Checkpoint.open, Path(config.model.path))
        self._loaded: tuple[Slots, ExpertBank] | None = None
        self._timer = PartTimer()
        self._progress = LoadingProgress()
        self._member = MemberClient(
            self._runtime.member(Role.EXPERTS, serve.get_replica_context().replica_id.unique_id),
            coordinator_finder(config),
            config.failure.heartbeat_s,
        )
        self._follower: GenerationFollower[HostLink] = GenerationFollower(self._member)
        n_moe_layers = len(self._checkpoint.spec.moe_layers)
        self._loop = ExpertLoop(follower=self._follower, n_moe_layers=n_moe_layers, timer=self._timer)
        self._loop.start()
        self._events = GenerationEvents(self._follower, self._prepare, lambda: os._exit(1))
        await self._member.start(self._events)
        self._reporting = asyncio.create_task(report_load(self._member, self._load))

    def _prepare(self, generation: Generation, abandoned: Callable[[], str | None]) -> HostLink:
        """Loads the slots that the generation gives to this host, and meets its members."""
        layout = rank_layout(generation)
        host = generation.rank_of(self._runtime.incarnation) - generation.n_routers
        bank = self._bank(tuple(layer[host] for layer in layout.slots))
        communicator = self._runtime.communicator(generation, abandoned)
        spec = self._checkpoint.spec
        rows = row_format(spec, weights_dtype(self._runtime.config, spec))
        return HostLink(communicator, HostExchange(communicator, layout, rows, bank, self._timer.mark))

    def _bank(self, slots: Slots) -> ExpertBank:
        if self._loaded is not None and self._loaded[0] == slots:
            return self._loaded[1]
        started_s = time.monotonic()
        self._progress.begin()
        spec = self._checkpoint.spec
        bank = ExpertBank.load(
            self._checkpoint,
            spec,
            slots,
            mode=self._runtime.mode,
            dtype=weights_dtype(self._runtime.config, spec),
            device=self._runtime.device,
            progress=self._progress,
        )
        logger.info("experts loaded in %.1f s", time.monotonic() - started_s)
        self._loaded = (slots, bank)
        return bank

    def _load(self) -> Load:
        profile = self._timer.profile()
        return Load(
            tokens=self._loop.rows,
            decode_steps=profile.steps,
            decode_part_ms=profile.part_ms,
            busy_s=self._timer.busy_s,
            loaded_bytes=self._progress.loaded_bytes,
            total_bytes=self._progress.total_bytes,
        )

    def check_health(self) -> None:
        """Serve's health check: raises when the expert thread has died."""
        self._loop.check()

    async def __del__(self) -> None:
        await hand_over(self._member, self._events)
        self._reporting.cancel()
        await self._member.close()
        await asyncio.to_thread(self._loop.stop, STOP_TIMEOUT_S)
