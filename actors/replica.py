"""What router and expert-host replicas share: device, threads, and the news of generations.

Shape suffixes: none; this module moves no tensors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
import torch

from expertmesh.actors.room import check_room_beside
from expertmesh.cluster.member import MemberClient
from expertmesh.cluster.state import LEFT_AS_ASKED
from expertmesh.cluster.types import Generation, MemberInfo, Role, Weights
from expertmesh.configs.schema import DeploymentConfig
from expertmesh.engine.exchange.communicator import Communicator
from expertmesh.engine.exchange.counted import CountedCommunicator, Traffic
from expertmesh.engine.exchange.layout import RankLayout
from expertmesh.engine.exchange.rendezvous import build_communicator, choose_transport
from expertmesh.engine.exchange.rows import RowFormat
from expertmesh.engine.follower import GenerationFollower, Link
from expertmesh.kernels.mode import ComputeMode
from expertmesh.models.checkpoint import Checkpoint
from expertmesh.models.replacement import open_replacement
from expertmesh.models.spec import ModelSpec, MoeSpec

logger = logging.getLogger(__name__)

HAND_OVER_S = 50.0
"""Less than Serve grants a replica to leave (`actors.app.STOP_S`), with time to end the threads."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

LinkT = TypeVar("LinkT", bound=Link)
Prepare = Callable[[Generation, Callable[[], str | None]], LinkT]


@dataclass(frozen=True, slots=True)
class ReplicaRuntime:
    """Where and how one replica computes."""

    config: DeploymentConfig
    device: torch.device
    mode: ComputeMode
    host: str
    incarnation: str
    traffic: Traffic = field(default_factory=Traffic)
    """What this replica exchanges with others."""

    @classmethod
    def create(cls, config: DeploymentConfig, threads: int, replicas: int) -> ReplicaRuntime:
        """Fixes the thread count of this process and picks its device."""
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // max(replicas, 1)))
        torch.set_grad_enabled(False)
        mode = ComputeMode(config.engine.tile_rows if config.engine.deterministic else None)
        return cls(
            config,
            torch.device(config.device),
            mode,
            host=ray.util.get_node_ip_address(),
            incarnation=uuid.uuid4().hex,
        )

    def member(
        self, role: Role, replica_id: str, stream_address: str = "", store_address: str = ""
    ) -> MemberInfo:
        """How this replica introduces itself to the coordinator."""
        return MemberInfo(
            incarnation=self.incarnation,
            role=role,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            device=self._device_name(),
            stream_address=stream_address,
            store_address=store_address,
            replica_id=replica_id,
        )

    def communicator(self, generation: Generation, abandoned: Callable[[], str | None]) -> Communicator:
        """Meets the other members of a generation."""
        names = member_names(generation)
        communicator = build_communicator(
            generation=generation.number,
            rank=generation.rank_of(self.incarnation),
            members=names,
            store_address=generation.store_address,
            host=self.host,
            device=self.device,
            transport=choose_transport(
                self.config.exchange.transport, [(m.node, m.device) for m in generation.members]
            ),
            prepare_s=self.config.failure.prepare_s,
            collective_s=self.config.failure.collective_s,
            abandoned=abandoned,
        )
        return (
            CountedCommunicator(communicator, self.traffic) if self.config.metrics.enabled else communicator
        )

    def open_weights(self, weights: Weights, spec: ModelSpec | None) -> Checkpoint:
        """The checkpoint of a version of the weights; its architecture must be `spec`, where that is given.

        Raises:
            CheckpointError: it cannot be served, or not in the place of the configured one.
        """
        configured = Path(self.config.model.path)
        path = Path(weights.path) if weights.path else configured
        if spec is not None and path != configured:
            return open_replacement(path, configured, spec)
        return Checkpoint.open(path, drafts=self.config.speculative.drafts)

    def check_room(self, needed_bytes: int, generation: Generation, what: str) -> None:
        """Returns when weights of this size can be loaded beside those that are served (`RoomError`)."""
        here = generation.members[generation.rank_of(self.incarnation)]
        n_sharing = sum(m.node == here.node and m.device == here.device for m in generation.members)
        check_room_beside(needed_bytes, n_sharing, what, self.device)

    def _device_name(self) -> str:
        if self.device.type != "cuda":
            return self.device.type
        properties = torch.cuda.get_device_properties(self.device)
        return f"cuda:{properties.name}:{properties.uuid}"


def weights_dtype(config: DeploymentConfig, spec: ModelSpec) -> torch.dtype:
    """The precision of weights and of rows on their way."""
    return DTYPES[spec.dtype if config.model.dtype == "auto" else config.model.dtype]


def row_format(spec: ModelSpec, dtype: torch.dtype) -> RowFormat:
    """How this model's rows travel."""
    moe = spec.moe_layers[0].ffn
    assert isinstance(moe, MoeSpec)
    return RowFormat(spec.hidden_size, moe.gate.top_k, dtype)


def rank_layout(generation: Generation, spec: ModelSpec) -> RankLayout:
    """The generation as the exchange sees it."""
    return RankLayout(
        generation=generation.number,
        n_routers=generation.n_routers,
        slots=generation.placement.layers,
        members=tuple(member_names(generation)),
        n_draft_layers=spec.n_draft_moe_layers,
    )


def member_names(generation: Generation) -> list[str]:
    """Names for error messages, in rank order."""
    return [
        f"{member.role.value} rank {rank} (pid {member.pid} on node {member.node[:8]})"
        for rank, member in enumerate(generation.members)
    ]


async def hand_over(member: MemberClient, events: GenerationEvents[LinkT]) -> None:
    """Leaves the deployment in peace: what this member holds moves to others first.

    Serve ends the process anyway when its patience runs out; then the others recover from its loss.
    """
    member.leave()
    try:
        async with asyncio.timeout(HAND_OVER_S):
            await events.excluded.wait()
    except TimeoutError:
        logger.warning("this replica was not let go within %g s: it leaves all the same", HAND_OVER_S)


class GenerationEvents(Generic[LinkT]):
    """The coordinator's messages, handed to the follower of the engine thread.

    Implements `cluster.member.MemberEvents`; the gateway's messages do not concern it.
    """

    def __init__(
        self, follower: GenerationFollower[LinkT], prepare: Prepare[LinkT], exit_process: Callable[[], None]
    ) -> None:
        self._follower = follower
        self._prepare = prepare
        self._exit_process = exit_process
        self.excluded = asyncio.Event()
        """The coordinator has let this member go; set on the event loop."""

    def on_prepare(self, generation: Generation) -> None:
        """Prepares in the background."""
        self._follower.on_prepare(generation.number, lambda abandoned: self._prepare(generation, abandoned))

    def on_live(self, number: int, epoch: int) -> None:
        """The generation is live."""
        self._follower.on_live(number, epoch)

    def on_switch(self, number: int, successor: int) -> None:
        """The generation is to be left for its successor."""
        self._follower.on_switch(number, successor)

    def on_abandon(self, number: int, reason: str) -> None:
        """Leaves the generation."""
        self._follower.on_abandon(number, reason)

    def on_wake(self, number: int, epoch: int) -> None:
        """Enters the epoch."""
        self._follower.on_wake(number, epoch)

    def on_excluded(self, reason: str) -> None:
        """This process is out for good: another may already stand in its place."""
        self.excluded.set()
        if reason != LEFT_AS_ASKED:
            logger.error("excluded by the coordinator: %s", reason)
            self._exit_process()

    def on_topology(self, update: Any) -> None:
        """For gateways."""

    def on_drain(self) -> None:
        """For gateways."""
