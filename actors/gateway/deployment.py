"""The gateway as a Serve replica: the two faces on one core, joined to the coordinator."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from ray import serve

from expertmesh.actors.collection import keep_all
from expertmesh.actors.coordinator_access import CoordinatorFinder, tell_autoscaling
from expertmesh.actors.gateway.access.gate import Caller, Gate
from expertmesh.actors.gateway.access.key_watch import KeyWatch
from expertmesh.actors.gateway.access.level import Access
from expertmesh.actors.gateway.access.rpc import streaming, unary
from expertmesh.actors.gateway.cluster_changes import ClusterChanges
from expertmesh.actors.gateway.core import GatewayCore
from expertmesh.actors.gateway.feed.feed import Feed
from expertmesh.actors.gateway.feed.pieces import about_piece
from expertmesh.actors.gateway.formats.interface import ChatFormat
from expertmesh.actors.gateway.formats.select import select_format
from expertmesh.actors.gateway.http import build_http_app
from expertmesh.actors.gateway.request_log import log_request
from expertmesh.actors.gateway.requests import ModelCard
from expertmesh.actors.gateway.router_link import RouterLink
from expertmesh.actors.gateway.rpc import RpcFace
from expertmesh.actors.gateway.telemetry import GatewayTelemetry
from expertmesh.actors.gateway.tokenizer import TextTokenizer
from expertmesh.actors.logs import set_up_logging
from expertmesh.actors.metrics.ray_sink import metric_sink
from expertmesh.actors.tracing.process import gateway_tracing
from expertmesh.cluster.control import CoordinatorUnavailableError
from expertmesh.cluster.load import Load
from expertmesh.cluster.member import MemberClient
from expertmesh.cluster.types import Generation, MemberInfo, Role
from expertmesh.configs.schema import AutoscalingConfig, DeploymentConfig, LiveSettings
from expertmesh.models.checkpoint import check_checkpoint
from expertmesh.models.replacement import open_replacement
from expertmesh.models.spec import ModelSpec
from expertmesh.proto.v1 import inference_pb2 as public
from expertmesh.proto.v1 import internal_pb2 as pb

logger = logging.getLogger(__name__)

TELL_S = 1.0
"""Between two looks at what metrics tell of."""


def gateway_class() -> type:
    """The ingress class, ready for `serve.deployment`."""
    ingress: type = serve.ingress()(Gateway)
    return ingress


def model_card(config: DeploymentConfig, spec: ModelSpec) -> ModelCard:
    """What the gateway has to know of the deployment's checkpoint, whose architecture is `spec`."""
    return ModelCard(
        name=config.served_name,
        architecture=spec.architecture,
        vocab_size=spec.vocab_size,
        max_context_tokens=config.model.max_context_tokens or spec.max_position_tokens,
        eos_token_ids=frozenset(spec.eos_token_ids),
        n_experts=spec.n_experts,
    )


class Gateway:
    """The Serve ingress. Serve calls its methods by the RPCs' names, and its ASGI application for HTTP.

    Args:
        config_json: the `DeploymentConfig`.
        children: handles of the other deployments; bound only so that Serve starts them together.
    """

    async def __init__(self, config_json: str, *children: Any) -> None:  # type: ignore[misc]
        keep_all()
        config = DeploymentConfig.model_validate_json(config_json)
        self._config = config
        replica_id = serve.get_replica_context().replica_id.unique_id
        set_up_logging(config.logging, application=config.name, process="gateway", replica=replica_id)
        self._tracing = gateway_tracing(config, replica_id)
        self._autoscaling: AutoscalingConfig | None = None
        path = Path(config.model.path)
        self._incarnation = incarnation = uuid.uuid4().hex
        tokenizer = TextTokenizer.load(path)
        self._format = ChatFormat(None)
        if tokenizer is not None:
            self._format = select_format(config.model, path, tokenizer.has_token)
        spec = check_checkpoint(path, drafts=config.speculative.drafts)
        self._finder = CoordinatorFinder(config)
        self._core = GatewayCore(
            model_card(config, spec),
            config.limits,
            config.failure.lease_s,
            tokenizer,
            incarnation,
            self._report,
            config.gateway.stream_chunks_per_s,
            partial(RouterLink, trust=self._finder.trust),
            telemetry=GatewayTelemetry(
                log_request, self._tracing.spans if self._tracing else None, config.logging.prompts
            ),
        )
        self._member = MemberClient(
            MemberInfo(
                incarnation=incarnation,
                role=Role.GATEWAY,
                node=ray.get_runtime_context().get_node_id(),
                pid=os.getpid(),
                device="cpu",
                replica_id=replica_id,
            ),
            self._find_coordinator,
            config.failure.heartbeat_s,
            trust=self._finder.trust,
        )
        self._changes = ClusterChanges(
            self._member, lambda replacement: open_replacement(replacement, path, spec)
        )
        self._face = RpcFace(self._core, self._fresh_topology, self._changes)
        self._keys = KeyWatch(config.access.key_file) if config.access.key_file else None
        refused = self._core.telemetry.not_admitted
        self.gate = Gate(on_refusal=refused)
        if (keys := self._keys) is not None:
            self.gate = Gate(keys.keyring, stale=lambda: bool(keys.error), on_refusal=refused)
            keys.start(config.access.reload_s)
        await self._member.start(_TopologyEvents(self._core))
        self._telling = asyncio.create_task(self._tell_metrics()) if config.metrics.enabled else None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the settings that a deploy config changes while the replica runs (`LiveSettings`)."""
        live = LiveSettings.model_validate(user_config)
        self._core.set_limits(live.limits)
        self._autoscaling = live.autoscaling
        try:
            await tell_autoscaling(self._config.name, live.autoscaling)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("the coordinator will be told of autoscaling when it is back: %s", error)

    async def _find_coordinator(self) -> str:
        """Its address, before every connection; a new one is told what the deploy config says."""
        address = await self._finder()
        if self._autoscaling:
            await tell_autoscaling(self._config.name, self._autoscaling)
        return address

    def __serve_build_asgi_app__(self) -> FastAPI:
        about = about_piece(
            self._core,
            has_chat=self._format.encoder is not None,
            window_s=self._config.balance.window_s,
            gateway=self._incarnation,
        )
        feed = Feed(self._core, self._fresh_topology, about)
        return build_http_app(
            self._core, self._format, self._fresh_topology, self._changes, feed, self.gate
        )

    async def __del__(self) -> None:
        self._core.drain()
        if self._telling is not None:
            self._telling.cancel()
        await self._core.close()
        await self._member.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._keys is not None:
            await self._keys.close()

    def _report(self, outstanding_requests: int) -> None:
        self._member.report_load(
            Load(
                outstanding_requests=outstanding_requests,
                oldest_weights=self._core.oldest_weights,
                newest_weights=self._core.newest_weights,
            )
        )

    async def _tell_metrics(self) -> None:
        sink = metric_sink(self._config, "gateway", serve.get_replica_context().replica_id.unique_id)
        while True:
            self._core.telemetry.tell(sink, self._core.n_outstanding, self._core.n_waiting)
            await asyncio.sleep(TELL_S)

    async def _fresh_topology(self) -> pb.TopologyUpdate:
        try:
            return await self._member.get_state()
        except CoordinatorUnavailableError as error:
            logger.warning("%s", error)
            last = pb.TopologyUpdate()
            last.CopyFrom(self._core.topology)
            last.stale = True
            return last

    # ------------------------------------------------------------------ the RPCs, by their names

    @unary(Access.USER, public.GenerateResponse)
    async def Generate(  # noqa: N802
        self, request: public.GenerateRequest, caller: Caller
    ) -> public.GenerateResponse:
        return await self._face.generate(request, caller)

    @streaming(Access.USER)
    def GenerateStream(  # noqa: N802
        self, request: public.GenerateRequest, caller: Caller
    ) -> AsyncGenerator[public.GenerateChunk, None]:
        return self._face.generate_stream(request, caller)

    @unary(Access.USER, public.TokenizeResponse)
    async def Tokenize(  # noqa: N802
        self, request: public.TokenizeRequest, caller: Caller
    ) -> public.TokenizeResponse:
        return await self._face.tokenize(request)

    @unary(Access.USER, public.ListModelsResponse)
    async def ListModels(  # noqa: N802
        self, request: public.ListModelsRequest, caller: Caller
    ) -> public.ListModelsResponse:
        return self._face.list_models()

    @unary(Access.USER, public.Topology)
    async def GetTopology(  # noqa: N802
        self, request: public.GetTopologyRequest, caller: Caller
    ) -> public.Topology:
        return await self._face.get_topology()

    @unary(Access.USER, public.ExpertLoad)
    async def GetExpertLoad(  # noqa: N802
        self, request: public.GetExpertLoadRequest, caller: Caller
    ) -> public.ExpertLoad:
        return await self._face.get_expert_load()

    @unary(Access.ADMIN, public.ScaleResponse)
    async def Scale(self, request: public.ScaleRequest, caller: Caller) -> public.ScaleResponse:  # noqa: N802
        return await self._face.scale(request)

    @unary(Access.ADMIN, public.RebalanceResponse)
    async def Rebalance(  # noqa: N802
        self, request: public.RebalanceRequest, caller: Caller
    ) -> public.RebalanceResponse:
        return await self._face.rebalance()

    @unary(Access.ADMIN, public.ReloadResponse)
    async def Reload(self, request: public.ReloadRequest, caller: Caller) -> public.ReloadResponse:  # noqa: N802
        return await self._face.reload(request)

    @unary(Access.OPEN, health_pb2.HealthCheckResponse)
    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, caller: Caller
    ) -> health_pb2.HealthCheckResponse:
        return await self._face.check(request)

    @streaming(Access.OPEN)
    def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, caller: Caller
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        return self._face.watch(request)


class _TopologyEvents:
    """What the coordinator tells a gateway (`cluster.member.MemberEvents`)."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core

    def on_topology(self, update: pb.TopologyUpdate) -> None:
        """Who serves."""
        self._core.on_topology(update)

    def on_drain(self) -> None:
        """Stop admitting."""
        self._core.drain()

    def on_excluded(self, reason: str) -> None:
        """This replica may be replaced already: it takes nothing more, and Serve restarts it."""
        logger.error("excluded by the coordinator: %s", reason)
        os._exit(1)

    def on_prepare(self, generation: Generation) -> None:
        """For routers and expert hosts."""

    def on_live(self, number: int, epoch: int) -> None:
        """For routers and expert hosts."""

    def on_switch(self, number: int, successor: int) -> None:
        """For routers and expert hosts."""

    def on_abandon(self, number: int, reason: str) -> None:
        """For routers and expert hosts."""

    def on_wake(self, number: int, epoch: int) -> None:
        """For routers and expert hosts."""
