"""The expert host: a slice of the routed experts of every MoE layer on one device."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ray import serve

from expertmesh.actors.coordinator_access import CoordinatorFinder
from expertmesh.actors.held_banks import HeldBanks
from expertmesh.actors.logs import set_up_logging
from expertmesh.actors.metrics.members import tell_host
from expertmesh.actors.metrics.ray_sink import metric_sink
from expertmesh.actors.replica import (
    GenerationEvents,
    ReplicaRuntime,
    hand_over,
    rank_layout,
    row_format,
    weights_dtype,
)
from expertmesh.actors.reporting import LoadingProgress, report_load
from expertmesh.actors.room import slots_per_host
from expertmesh.cluster.load import Load
from expertmesh.cluster.member import MemberClient
from expertmesh.cluster.types import Generation, Role, Weights
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.engine.exchange.host import HostExchange
from expertmesh.engine.expert_loop import ExpertLoop
from expertmesh.engine.follower import GenerationFollower
from expertmesh.engine.link import HostLink
from expertmesh.engine.profile import PartTimer
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.expert_store import ExpertStore

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0


class ExpertHost:
    """Serves its slots of every generation it is a member of."""

    @classmethod
    async def start(cls, config_json: str) -> ExpertHost:
        """Opens the checkpoint and joins the deployment; `config_json` is a `DeploymentConfig`."""
        config = DeploymentConfig.model_validate_json(config_json)
        checkpoint = await asyncio.to_thread(
            partial(Checkpoint.open, Path(config.model.path), drafts=config.speculative.drafts)
        )
        host = cls(config, checkpoint)
        await host._join()
        return host

    def __init__(self, config: DeploymentConfig, checkpoint: Checkpoint) -> None:
        self._runtime = ReplicaRuntime.create(config, config.experts.threads, config.experts.replicas)
        self._checkpoint = checkpoint
        self._dtype = weights_dtype(config, checkpoint.spec)
        self._timer = PartTimer()
        self._progress = LoadingProgress()
        finder = CoordinatorFinder(config)
        replica_id = serve.get_replica_context().replica_id.unique_id
        set_up_logging(config.logging, application=config.name, process="experts", replica=replica_id)
        self._metrics = metric_sink(config, "experts", replica_id)
        self._member = MemberClient(
            replace(
                self._runtime.member(Role.EXPERTS, replica_id),
                slots=slots_per_host(config, checkpoint, self._dtype, self._runtime.device),
            ),
            finder,
            config.failure.heartbeat_s,
            probe_host=self._runtime.host,
            trust=finder.trust,
        )
        self._follower: GenerationFollower[HostLink] = GenerationFollower(self._member)
        self._banks = HeldBanks(self._open_store, lambda: self._follower.live_number, self._progress)
        self._loop = ExpertLoop(follower=self._follower, timer=self._timer)
        self._events = GenerationEvents(self._follower, self._prepare, lambda: os._exit(1))

    async def _join(self) -> None:
        self._loop.start()
        await self._member.start(self._events)
        self._reporting = asyncio.create_task(report_load(self._member, self._load, self._tell))

    def _prepare(self, generation: Generation, abandoned: Callable[[], str | None]) -> HostLink:
        """Loads the slots that the generation gives to this host, and meets its members."""
        layout = rank_layout(generation, self._checkpoint.spec)
        host = generation.rank_of(self._runtime.incarnation) - generation.n_routers
        slots = tuple(layer[host] for layer in layout.slots)
        spec = self._checkpoint.spec

        def check_room(weights: Weights, store: ExpertStore) -> None:
            n_bytes = store.bytes_of(slots)
            self._runtime.check_room(n_bytes, generation, f"the experts of {weights.label}")

        banks = self._banks.prepare(
            generation.number, slots, abandoned, generation.weights, check_room=check_room
        )
        communicator = self._runtime.communicator(generation, abandoned)
        rows = row_format(spec, self._dtype)
        return HostLink(communicator, HostExchange(communicator, layout, rows, banks, self._timer.mark))

    def _open_store(self, weights: Weights) -> ExpertStore:
        """The experts of a version of the weights, none read yet; raises CheckpointError."""
        runtime = self._runtime
        checkpoint = runtime.open_weights(weights, self._checkpoint.spec)
        return ExpertStore(
            checkpoint,
            checkpoint.spec,
            mode=runtime.mode,
            dtype=self._dtype,
            device=runtime.device,
            held_as=runtime.config.experts.weights,
        )

    def _load(self) -> Load:
        self._banks.forget()
        profile = self._timer.profile()
        return Load(
            tokens=self._loop.rows,
            decode_steps=profile.steps,
            decode_part_ms=profile.part_ms,
            busy_s=self._timer.busy_s,
            loaded_bytes=self._progress.loaded_bytes,
            total_bytes=self._progress.total_bytes,
        )

    def _tell(self, load: Load) -> None:
        tell_host(self._metrics, load, self._runtime.traffic)

    def check_health(self) -> None:
        """Raises when the expert thread has died."""
        self._loop.check()

    async def leave(self) -> None:
        """Hands over what is under way, takes leave of the coordinator and ends the threads."""
        await hand_over(self._member, self._events)
        self._reporting.cancel()
        await self._member.close()
        await asyncio.to_thread(self._loop.stop, STOP_TIMEOUT_S)
