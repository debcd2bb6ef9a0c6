"""The coordinator as a Ray actor: named, detached, restarted for as long as it is needed."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import ray

from expertmesh.actors.collection import keep_all
from expertmesh.actors.coordinator_access import trust_of
from expertmesh.actors.logs import set_up_logging
from expertmesh.actors.metrics.ray_sink import metric_sink
from expertmesh.actors.replica_process import kill_replica
from expertmesh.actors.scaler import DashboardPort
from expertmesh.cluster.coordinator import Coordinator, rules_of
from expertmesh.cluster.load import LoadTable
from expertmesh.cluster.metrics.coordinator import CoordinatorMetrics
from expertmesh.cluster.placement.planner import ExpertPlacer
from expertmesh.cluster.scaling import DEPLOYMENTS, ScalerUnavailableError, ServePort
from expertmesh.cluster.scaling_loop import ScalingLoop
from expertmesh.cluster.trust.secret import HeldSecret
from expertmesh.configs.schema import AutoscalingConfig, DeploymentConfig

logger = logging.getLogger(__name__)

TELL_S = 1.0
"""Between two looks at what metrics tell of."""


class CoordinatorActor:
    """Serves the coordinator's gRPC on this node.

    Args:
        config_json: the `DeploymentConfig`.
        n_moe_layers: layers with routed experts.
        n_experts: routed experts of each.
        n_groups: groups of experts that the gate chooses by.
        linger_s: see LINGER_S.
        secret: the deployment's, where the configuration names no file; the actor's restarts keep it.
    """

    def __init__(
        self,
        config_json: str,
        n_moe_layers: int,
        n_experts: int,
        n_groups: int,
        linger_s: float,
        secret: str,
    ) -> None:
        keep_all()
        self._config = DeploymentConfig.model_validate_json(config_json)
        # Who comes and goes, what changes and why.
        set_up_logging(self._config.logging, application=self._config.name, process="coordinator")
        self._secret = HeldSecret()
        self._secret.tell(secret)
        self._port = DashboardPort(self._config.name)
        self._loads = LoadTable(n_experts=n_experts, window_s=self._config.balance.window_s)
        self._place = ExpertPlacer(
            n_moe_layers,
            n_experts,
            n_groups=n_groups,
            redundant_slots=self._config.experts.redundant_slots,
            staging_slots=self._config.experts.staging_slots,
            load=self._loads.window_expert_rows,
        )
        self._metrics = CoordinatorMetrics(
            metric_sink(self._config, "coordinator"), self._config.metrics, n_experts
        )
        self._linger_s = linger_s
        self._autoscaling: AutoscalingConfig | None = None
        self._coordinator: Coordinator | None = None
        self._starting: asyncio.Task[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def ping(self) -> None:
        """Answers as long as the event loop turns."""

    async def entrance(self) -> tuple[str, str]:
        """HOST:PORT of the gRPC server, which the first call starts, and the secret that it asks for."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting), self._secret.current

    async def set_autoscaling(self, autoscaling_json: str) -> None:
        """Scales by these settings from now on (an `AutoscalingConfig`)."""
        self._autoscaling = AutoscalingConfig.model_validate_json(autoscaling_json)
        if self._coordinator:
            self._coordinator.set_autoscaling(self._autoscaling)

    async def _start(self) -> str:
        config = await configured_counts(self._config, self._port)
        scaling = partial(ScalingLoop, config, self._port, observe=self._metrics.scaled)
        kill = partial(kill_replica, config.name)
        trust = trust_of(config.security, self._secret)
        self._coordinator = Coordinator(
            rules_of(config), self._place, scaling, self._loads, kill, trust, self._metrics
        )
        if self._autoscaling:
            self._coordinator.set_autoscaling(self._autoscaling)
        address = await self._coordinator.start(ray.util.get_node_ip_address())
        self._tasks.append(asyncio.create_task(self._end_when_deserted(self._coordinator)))
        if self._config.metrics.enabled:
            self._tasks.append(asyncio.create_task(self._tell_metrics(self._coordinator)))
        return address

    async def _tell_metrics(self, coordinator: Coordinator) -> None:
        while True:
            self._metrics.tell(coordinator.observation(), asyncio.get_running_loop().time())
            await asyncio.sleep(TELL_S)

    async def _end_when_deserted(self, coordinator: Coordinator) -> None:
        await coordinator.wait_until_deserted(self._linger_s)
        logger.info("no member for %g s: the coordinator ends", self._linger_s)
        await coordinator.stop()
        # Leaving by itself for good: an exit of the process would be a crash, and Ray would restart it.
        await asyncio.to_thread(ray.kill, ray.get_runtime_context().current_actor, no_restart=True)


async def configured_counts(config: DeploymentConfig, port: ServePort) -> DeploymentConfig:
    """The configuration with the numbers of replicas that Serve has, where they are Serve's to say.

    When Serve cannot be asked its own numbers stand: the deployment begins with whoever is there.
    """
    if not config.counts_from_serve:
        return config
    try:
        targets = await port.targets()
    except ScalerUnavailableError as error:
        logger.warning("how many replicas there are to be is not known: %s", error)
        return config
    return config.model_copy(
        update={
            name: getattr(config, name).model_copy(update={"replicas": n})
            for name, n in targets.items()
            if name in DEPLOYMENTS
        }
    )
